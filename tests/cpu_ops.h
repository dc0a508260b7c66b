// For tests of single ops on the CPU: matrices with a row stride, and the three implementations
// that are compared.
#pragma once

#include "cpu/cpu_backend.h"
#include "cpu/fast/bf16_tile.h"
#include "harness.h"

namespace lk::test {

// The plain twins; every other result is compared with their F64 results.
inline Backend& reference() {
  static std::unique_ptr<Backend> backend = make_cpu_backend(CpuMode::Reference);
  return *backend;
}
inline Backend& fast() {
  static std::unique_ptr<Backend> backend = make_cpu_backend(CpuMode::Fast);
  return *backend;
}

// Makes this processor appear to have no BF16 arithmetic while the object lives.
struct WithoutBf16Tile {
  WithoutBf16Tile() { cpu::allow_bf16_tile(false); }
  ~WithoutBf16Tile() { cpu::allow_bf16_tile(true); }
};

inline constexpr double kPadding = 77;

// A matrix with a row stride of cols + pad; the padding holds a known number.
inline Tensor padded(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                     std::int64_t pad, const std::vector<double>& values) {
  std::vector<double> all(static_cast<std::size_t>(rows * (cols + pad)), kPadding);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < cols; ++j)
      all[static_cast<std::size_t>(i * (cols + pad) + j)] =
          values[static_cast<std::size_t>(i * cols + j)];
  return tensor_from(backend, dtype, {rows, cols + pad}, all).slice_cols(0, cols);
}
inline Tensor padded(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                     std::int64_t pad, unsigned seed, double scale = 1.0) {
  return padded(backend, dtype, rows, cols, pad, random_values(rows * cols, seed, scale));
}

// The values of a host matrix with any row stride.
inline std::vector<double> values(const Tensor& x) {
  return dispatch_float(x.dtype(), [&]<class T>() {
    std::vector<double> out;
    for (std::int64_t i = 0; i < x.rows(); ++i)
      for (std::int64_t j = 0; j < x.cols(); ++j)
        out.push_back(static_cast<accumulate_t<T>>(x.data<T>()[i * x.ld() + j]));
    return out;
  });
}

// The numbers of x in F64 on the reference backend.
inline Tensor as_f64(const Tensor& x) {
  return tensor_from(reference(), DType::F64, x.shape(), values(x));
}

// Whether the gaps between the rows of a padded() matrix are untouched.
inline bool padding_intact(const Tensor& x) {
  return dispatch_float(x.dtype(), [&]<class T>() {
    for (std::int64_t i = 0; i < x.rows(); ++i)
      for (std::int64_t j = x.cols(); j < x.ld(); ++j)
        if (static_cast<accumulate_t<T>>(x.data<T>()[i * x.ld() + j]) != kPadding) return false;
    return true;
  });
}

// The implementations compared with the F64 twin: (backend, dtype) pairs.
struct Subject {
  const char* name;
  Backend& backend;
  DType dtype;
};
inline std::vector<Subject> subjects() {
  return {{"plain f32", reference(), DType::F32},
          {"plain bf16", reference(), DType::BF16},
          {"fast f32", fast(), DType::F32},
          {"fast bf16", fast(), DType::BF16},
          {"fast f64", fast(), DType::F64}};
}

}  // namespace lk::test
