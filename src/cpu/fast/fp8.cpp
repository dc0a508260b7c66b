#include "cpu/fast/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

class CpuFp8Kernels final : public Fp8Kernels {
 public:
  CpuFp8Kernels(Backend& backend, bool rehearsal) : backend_(backend), rehearsal_(rehearsal) {}
  bool in_hardware() const override { return false; }
  bool takes(DType) const override { return true; }

  void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> columns) override {
    if (rehearsal_) return;
    std::vector<float> scales;
    for (const Tensor& part : columns)
      scales.insert(scales.end(), part.data<float>(), part.data<float>() + part.numel());
    check(columns.empty() || std::ssize(scales) == x.cols(), "quantise_rows: ", scales.size(),
          " scales of columns for ", x.shape());
    const Matrix<std::uint8_t> codes = matrix<std::uint8_t>(to.codes);
    dispatch_float(x.dtype(), [&]<class T>() {
      const Matrix<T> from = matrix<T>(x);
      parallel_for(from.rows, x.numel(), [&](std::int64_t t) {
        auto value = [&](std::int64_t k) {
          const auto v = static_cast<float>(load(from[t][k]));
          return scales.empty() ? v : v * scales[static_cast<std::size_t>(k)];
        };
        std::uint32_t most = 0;  // the bits of the largest magnitude: a NaN is larger than all
        for (std::int64_t k = 0; k < from.cols; ++k)
          most = std::max(most, std::bit_cast<std::uint32_t>(value(k)) & 0x7fffffffu);
        const float amax = std::bit_cast<float>(most);
        const float inverse = amax < kSmallestE4m3Row ? 1 : 448 / amax;
        to.scales.data<float>()[t] = e4m3_row_scale(amax);
        for (std::int64_t k = 0; k < from.cols; ++k)
          codes[t][k] = float_to_e4m3(value(k) * inverse);
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
