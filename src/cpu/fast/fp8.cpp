#include "cpu/fast/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

// g of Note [Pairs of codes] in tensor/fp8_product.h.
float pair_factor(const Tensor& bounds) {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < bounds.numel(); ++i)
    most = std::max(most, std::bit_cast<std::uint32_t>(bounds.data<float>()[i]));
  if (most >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>((std::max(most >> 23, 31u) - 4) << 23);
}

// A number as a code and the code of what that leaves.
struct CodePair {
  std::uint8_t high, low;
  explicit CodePair(float v)
      : high(float_to_e4m3(v)), low(float_to_e4m3(v - e4m3_to_float(high))) {}
};

class CpuFp8Kernels final : public Fp8Kernels {
 public:
  CpuFp8Kernels(Backend& backend, bool rehearsal) : backend_(backend), rehearsal_(rehearsal) {}
  bool in_hardware() const override { return false; }
  bool takes(DType) const override { return true; }

  void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> columns,
                     const Fp8Thin& beside) override {
    if (rehearsal_) return;
    std::vector<float> scales;
    for (const Tensor& part : columns)
      scales.insert(scales.end(), part.data<float>(), part.data<float>() + part.numel());
    check(columns.empty() || std::ssize(scales) == x.cols(), "quantise_rows: ", scales.size(),
          " scales of columns for ", x.shape());
    const Matrix<std::uint8_t> codes = matrix<std::uint8_t>(to.codes);
    const float g = beside.values ? pair_factor(beside.bounds) : 0;
    dispatch_float(x.dtype(), [&]<class T>() {
      const Matrix<T> from = matrix<T>(x);
      const Matrix<T> thin = beside.values ? matrix<T>(beside.values) : Matrix<T>{};
      parallel_for(from.rows, x.numel(), [&](std::int64_t t) {
        auto value = [&](std::int64_t k) {
          const auto v = static_cast<float>(load(from[t][k]));
          return scales.empty() ? v : v * scales[static_cast<std::size_t>(k)];
        };
        std::uint32_t most = 0;  // the bits of the largest magnitude: a NaN is larger than all
        for (std::int64_t k = 0; k < from.cols; ++k)
          most = std::max(most, std::bit_cast<std::uint32_t>(value(k)) & 0x7fffffffu);
        auto thin_value = [&](std::int64_t j) { return static_cast<float>(load(thin[t][j])) * g; };
        for (std::int64_t j = 0; j < thin.cols; ++j)
          most = std::max(most, std::bit_cast<std::uint32_t>(thin_value(j)) & 0x7fffffffu);
        const float amax = std::bit_cast<float>(most);
        const float inverse = amax < kSmallestE4m3Row ? 1 : 448 / amax;
        to.scales.data<float>()[t] = e4m3_row_scale(amax);
        for (std::int64_t k = 0; k < from.cols; ++k)
          codes[t][k] = float_to_e4m3(value(k) * inverse);
        std::uint8_t* pairs = &codes[t][from.cols];
        for (std::int64_t j = 0; j < thin.cols; ++j) {
          const CodePair v(thin_value(j) * inverse);
          pairs[j] = pairs[2 * thin.cols + j] = v.high, pairs[thin.cols + j] = v.low;
        }
        std::fill(pairs + 3 * thin.cols, pairs + codes.cols - from.cols, std::uint8_t{0});
      });
    });
  }

  void put(const Fp8Rows& to, const Fp8Rows& from) override {
    if (rehearsal_) return;
    const Matrix<std::uint8_t> codes = matrix<std::uint8_t>(to.codes),
                               source = matrix<std::uint8_t>(from.codes);
    parallel_for(codes.rows, to.codes.numel(), [&](std::int64_t n) {
      std::copy_n(&source[n][0], codes.cols, &codes[n][0]);
      to.scales.data<float>()[n] = from.scales.data<float>()[n];
    });
  }

  void quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                       const Tensor& scales) override {
    if (rehearsal_) return;
    const Matrix<std::uint8_t> codes = matrix<std::uint8_t>(to);
    const std::int64_t S = turned ? f.values.rows() : f.values.cols();
    dispatch_float(f.values.dtype(), [&]<class T>() {
      const Matrix<T> from = matrix<T>(f.values);
      auto value = [&](std::int64_t row, std::int64_t j) {
        return static_cast<float>(load(turned ? from[j][row] : from[row][j])) /
               scales.data<float>()[row];
      };
      std::uint32_t most = 0;
      for (std::int64_t row = 0; row < codes.rows; ++row)
        for (std::int64_t j = 0; j < S; ++j)
          most = std::max(most, std::bit_cast<std::uint32_t>(value(row, j)) & 0x7fffffffu);
      std::fill_n(f.bounds.data<float>(), f.bounds.numel(), std::bit_cast<float>(most));
      const float inverse = 1 / pair_factor(f.bounds);
      parallel_for(codes.rows, to.numel(), [&](std::int64_t row) {
        std::uint8_t* pairs = &codes[row][0];
        for (std::int64_t j = 0; j < S; ++j) {
          const CodePair v(value(row, j) * inverse);
          pairs[j] = pairs[S + j] = v.high, pairs[2 * S + j] = v.low;
        }
        std::fill(pairs + 3 * S, pairs + codes.cols, std::uint8_t{0});
      });
    });
  }

  void transpose(const Fp8Rows& to, const Tensor& codes) override {
    if (rehearsal_) return;
    const Matrix<std::uint8_t> turned = matrix<std::uint8_t>(to.codes),
                               from = matrix<std::uint8_t>(codes);
    parallel_for(turned.rows, codes.numel(), [&](std::int64_t k) {
      for (std::int64_t n = 0; n < turned.cols; ++n) turned[k][n] = from[n][k];
    });
    std::fill_n(to.scales.data<float>(), turned.rows, 1.0f);
  }

  // Codes are exact in every dtype that products are computed in.
  bool multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                const Tensor& addend) override {
    const DType dtype = y.dtype();
    Tensor sums = backend_.empty(Tag::Workspace, stat_dtype(dtype), y.shape());
    backend_.matmul_nt(sums, GradMode::Write, 1.0, widen(a.codes, dtype), widen(b.codes, dtype));
    if (rehearsal_) return true;
    const float *rows = a.scales.data<float>(), *cols = b.scales.data<float>();
    dispatch_float(dtype, [&]<class T>() {
      using A = accumulate_t<T>;
      const Matrix<T> to = matrix<T>(y);
      const Matrix<A> sum = matrix<A>(sums);
      const Matrix<T> start = addend ? matrix<T>(addend) : to;
      const bool adds = addend || mode == GradMode::Add;
      parallel_for(to.rows, y.numel(), [&](std::int64_t t) {
        for (std::int64_t n = 0; n < to.cols; ++n) {
          const A product = sum[t][n] * static_cast<A>(rows[t]) * static_cast<A>(cols[n]);
          to[t][n] = rounded<T>(adds ? static_cast<A>(load(start[t][n])) + product : product);
        }
      });
    });
    return true;
  }

 private:
  Tensor widen(const Tensor& codes, DType dtype) const {
    Tensor values = backend_.empty(Tag::Workspace, dtype, codes.shape());
    if (rehearsal_) return values;
    static const std::array<float, 256> table = [] {
      std::array<float, 256> all{};
      for (unsigned code = 0; code < 256; ++code)
        all[code] = e4m3_to_float(static_cast<std::uint8_t>(code));
      return all;
    }();
    const Matrix<std::uint8_t> from = matrix<std::uint8_t>(codes);
    dispatch_float(dtype, [&]<class T>() {
      const Matrix<T> to = matrix<T>(values);
      parallel_for(from.rows, codes.numel(), [&](std::int64_t r) {
        for (std::int64_t c = 0; c < from.cols; ++c) to[r][c] = rounded<T>(table[from[r][c]]);
      });
    });
    return values;
  }

  Backend& backend_;
  bool rehearsal_;
};

}  // namespace

std::unique_ptr<Fp8Kernels> make_fp8_kernels(Backend& backend, bool rehearsal) {
  return std::make_unique<CpuFp8Kernels>(backend, rehearsal);
}

}  // namespace lk::cpu
