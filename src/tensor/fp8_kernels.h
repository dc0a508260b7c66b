// Fp8Kernels: what a device needs to multiply matrices of E4M3 codes. A device may offer them
// (QuantisedKernels::fp8_kernels); tensor/fp8_product.h composes products with frozen matrices of
// them.
#pragma once

#include <span>
#include <string>

#include "tensor/backend.h"

namespace lk {

// A matrix (R,K) of E4M3 codes (U8) with a scale (F32, (R)) for each row: value = code * scale.
struct Fp8Rows {
  Tensor codes, scales;
};

// One side of a low-rank term beside a product, and what says how large the factor's numbers are. Note
// [Pairs of codes] in tensor/fp8_product.h has the algebra.
struct Fp8Thin {
  static constexpr std::int64_t kBounds = 64;
  Tensor values;  // null: no such term
  // (kBounds) F32: the largest magnitudes, before its power of two, of as many parts of the factor
  Tensor bounds;
};

class Fp8Kernels {
 public:
  virtual ~Fp8Kernels() = default;

  // Whether the device multiplies codes in hardware, so that it is faster than dequantising them.
  virtual bool in_hardware() const = 0;
  // Whether it takes activations of that dtype.
  virtual bool takes(DType dtype) const = 0;
  // to (T,K) = x (T,K), or x with its columns multiplied by `columns`: vectors (F32) whose lengths
  // add up to K and are multiples of 8, at most kMostColumns of them. The scale of a row is
  // e4m3_row_scale() of its largest magnitude, and codes are rounded to the nearest, ties to even:
  // the same bits on every device. A row with an infinity or a NaN has a scale that is not finite.
  // With `beside`, values (T,S) times the factor's power of two share the row's scale and follow its
  // codes as pairs: to is (T, K + 3 S or more), zeros behind.
  virtual void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> columns,
                             const Fp8Thin& beside) = 0;
  static constexpr std::size_t kMostColumns = 4;
  // to (K,N) = codes (N,K) transposed; rows of to.codes may be apart. Scales of 1.
  virtual void transpose(const Fp8Rows& to, const Tensor& codes) = 0;
  // to = from; rows of to.codes may be apart.
  virtual void put(const Fp8Rows& to, const Fp8Rows& from) = 0;
  // to (R, 3 S or more) = pairs of f, zeros behind: f's rows divided by `scales` (R) and all by a
  // power of two. f.values are (R,S), or (S,R) if `turned`. Writes f.bounds. S is a multiple of 8.
  virtual void quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                               const Tensor& scales) = 0;
  // y (T,N) = a (T,K) b (N,K)ᵀ, added to y in GradMode::Add and to `addend` (T,N), which is not y's
  // memory, if that is given. K and N are multiples of 16. Sums are F32, scales multiply at their
  // end. False, with nothing done, if the device has no kernel for the shape.
  virtual bool multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                        const Tensor& addend) = 0;
};

}  // namespace lk
