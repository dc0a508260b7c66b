#include "tensor/fp8_probe.h"

#include <cmath>
#include <vector>

namespace lk {
namespace {

// Odd numbers of rows, two tiles of each side, and scales between 1/8 and 8 that differ everywhere.
constexpr std::int64_t kT = 37, kN = 160, kK = 192;

// The same numbers everywhere.
class Numbers {
 public:
  std::uint32_t next() { return state_ = state_ * 1664525u + 1013904223u, state_ >> 8; }

 private:
  std::uint32_t state_ = 2026;
};

struct HostRows {
  std::int64_t rows, cols;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;

  HostRows(Numbers& random, std::int64_t rows_in, std::int64_t cols_in)
      : rows(rows_in), cols(cols_in) {
    for (std::int64_t i = 0; i < rows * cols; ++i)  // magnitudes from 1/16 to 15
      codes.push_back(
          static_cast<std::uint8_t>((random.next() % 2) << 7 | (24 + random.next() % 64)));
    for (std::int64_t i = 0; i < rows; ++i)
      scales.push_back(std::ldexp(1 + static_cast<float>(random.next() % 1024) / 1024,
                                  static_cast<int>(random.next() % 6) - 3));
  }
  double at(std::int64_t row, std::int64_t col) const {
    const auto code = codes[static_cast<std::size_t>(row * cols + col)];
    return double{e4m3_to_float(code)} * double{scales[static_cast<std::size_t>(row)]};
  }
  Fp8Rows upload(Backend& backend) const {
    Fp8Rows to{backend.empty(Tag::Workspace, DType::U8, {rows, cols}),
               backend.empty(Tag::Workspace, DType::F32, {rows})};
    backend.upload(to.codes, codes.data(), codes.size());
    backend.upload(to.scales, scales.data(), scales.size() * sizeof(float));
    return to;
  }
};

Tensor upload(Backend& backend, const std::vector<float>& values, Shape shape) {
  Tensor wide = backend.empty(Tag::Workspace, DType::F32, shape),
         narrow = backend.empty(Tag::Workspace, DType::BF16, shape);
  backend.upload(wide, values.data(), values.size() * sizeof(float));
  backend.copy(narrow, wide);
  return narrow;
}

// Whether y is start + a bᵀ; returns what is wrong. An FP8 sum keeps at least 13 bits of its largest
// magnitude at each of its K / 32 steps, and BF16 rounds twice.
std::string compare(const char* mode, const Tensor& y, const std::vector<float>& start,
                    const HostRows& a, const HostRows& b) {
  const std::vector<double> got = to_host_f64(y);
  for (std::int64_t t = 0; t < a.rows; ++t)
    for (std::int64_t n = 0; n < b.rows; ++n) {
      const auto i = static_cast<std::size_t>(t * b.rows + n);
      double want = static_cast<double>(start[i]), size = std::abs(want);
      for (std::int64_t k = 0; k < a.cols; ++k) {
        want += a.at(t, k) * b.at(n, k);
        size += std::abs(a.at(t, k) * b.at(n, k));
      }
      const double slack =
          size * (static_cast<double>(a.cols) / 32 * 0x1p-13) + 0x1p-7 * std::abs(want);
      if (!(std::abs(got[i] - want) <= slack))
        return concat("its product of FP8 (", mode, ") is wrong: ", got[i], " at (", t, ",", n,
                      ") where the sum is ", want);
    }
  return "";
}

}  // namespace

std::string probe_fp8(Backend& backend, Fp8Kernels& kernels) {
  const char* const none = "its library has no product of FP8 with a scale for each row";
  if (!kernels.takes(DType::BF16)) return none;
  Numbers random;
  const HostRows a(random, kT, kK), b(random, kN, kK);
  const Fp8Rows left = a.upload(backend), right = b.upload(backend);
  std::vector<float> zero(static_cast<std::size_t>(kT * kN)), start;
  for (std::int64_t i = 0; i < kT * kN; ++i)
    start.push_back(static_cast<float>(random.next() % 256) - 128);

  Tensor y = upload(backend, start, {kT, kN});
  if (!kernels.multiply(y, GradMode::Write, left, right, {})) return none;
  if (std::string fault = compare("written", y, zero, a, b); !fault.empty()) return fault;
  y = upload(backend, start, {kT, kN});
  if (!kernels.multiply(y, GradMode::Add, left, right, {})) return none;
  if (std::string fault = compare("added", y, start, a, b); !fault.empty()) return fault;
  const Tensor addend = upload(backend, start, {kT, kN});
  y = upload(backend, zero, {kT, kN});
  if (!kernels.multiply(y, GradMode::Write, left, right, addend)) return none;
  if (std::string fault = compare("onto an addend", y, start, a, b); !fault.empty()) return fault;

  // y = a times the transpose of codes c (K,N) whose scales are 1.
  HostRows c(random, kK, kN), turned(random, kN, kK);
  for (std::int64_t n = 0; n < kN; ++n)
    for (std::int64_t k = 0; k < kK; ++k)
      turned.codes[static_cast<std::size_t>(n * kK + k)] =
          c.codes[static_cast<std::size_t>(k * kN + n)];
  turned.scales.assign(static_cast<std::size_t>(kN), 1.0f);
  const Fp8Rows transposed{backend.empty(Tag::Workspace, DType::U8, {kN, kK}),
                           backend.empty(Tag::Workspace, DType::F32, {kN})};
  kernels.transpose(transposed, c.upload(backend).codes);
  if (!kernels.multiply(y, GradMode::Write, left, transposed, {})) return none;
  return compare("of transposed codes", y, zero, a, turned);
}

}  // namespace lk
