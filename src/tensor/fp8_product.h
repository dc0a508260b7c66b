// Products with frozen E4M3 matrices in FP8, both ways.
//
// Note [FP8 products]: a matrix W (N,K) = diag(s) Q is stored as codes Q with a scale s for each
// output channel. X is rounded to E4M3 as well, row by row: X = diag(u) P, where u is the row's
// largest magnitude / 448. Then
//
//     y = X Wᵀ = diag(u) (P Qᵀ) diag(s)         dx = dY W = diag(v) (R Q),  dY diag(s) = diag(v) R
//
// so that both are products of codes with a scale for each row and each column of the result. The
// scales of W lie along the sum of dx, so they are multiplied into dY before that is rounded.
// Tensor cores want both operands with the sum's index innermost: Q for y, Qᵀ for dx, which is made
// in scratch for each product. Projections that share an input share P, and their Qᵀ lie side by
// side. LoRA's factors, and the gradients of what trains, see X and dY as they were.
//
// Note [Pairs of codes]: LoRA adds a term S Fᵀ to both, of S (T,R) and its factor F: B for y, Aᵀ for
// dx. It costs a few more columns of the same product instead of a pass over y and dx:
//
//     y = diag(u) [P | Z] [Q | G]ᵀ diag(s)     Z = diag(1/u) S g,  G = diag(1/s) F / g
//
// A number v of Z or G is a pair of codes, high = v and low = v - high, each rounded: off by v / 2^8
// or 2^-10 at most, as precise as bfloat16. Three columns of Z, (high, low, high), meet three of G,
// (high, high, low); the product of the two lows, as small as what they leave out, is not there.
// g is the power of two that brings G's largest magnitude into [16, 32), and u is the row's largest
// magnitude of X and S g, so that no number is cut off. Where F isn't finite g is a NaN, and so is y.
//
// Rounding X and dY is what these products cost: E4M3 has three bits of mantissa, so an element is
// off by up to 1/16 of itself, or by 2^-10 of its row's scale where that is more. Formats whose
// products run so say it (QuantisedFormat::multiplied); few rows never do.
// Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; scales by row as in torchao.
#pragma once

#include <vector>

#include "tensor/fp8_kernels.h"

namespace lk {

// W of one projection: rows [begin, end) of all that share an input.
struct Fp8Part {
  std::int64_t begin = 0, end = 0;
  const Weight* w = nullptr;
};

// A term s (T,R) fᵀ beside a product, f (N,R), or s f with f (R,K); s null: none. R is a multiple of 8.
struct Fp8LowRank {
  Tensor s, f;
};

class Fp8Product {
 public:
  // Fewer rows go through dense scratch, which rounds no activation: decoding and short prompts.
  static constexpr std::int64_t kFewestRows = 128;

  // `parts` in order, without gaps; their weights must stay.
  Fp8Product(Backend& backend, std::vector<Fp8Part> parts, std::int64_t rows, DType dtype);
  Fp8Product(Backend& backend, const Weight& w, std::int64_t rows, DType dtype)
      : Fp8Product(backend, {{0, w.shape()[0], &w}}, rows, dtype) {}
  // Whether the product runs in FP8. If not, nothing below may be called.
  explicit operator bool() const { return kernels_ != nullptr; }

  // y (T,N) (+)= x (T,K) Wᵀ + s fᵀ, or the same onto addend (T,N)
  void forward(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& addend = {},
               const Fp8LowRank& low = {}) const;
  // dx (T,K) (+)= dy (T,N) W + s f
  void backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                  const Fp8LowRank& low = {}) const;

 private:
  // `width` columns of codes in all
  Fp8Rows quantise(const Tensor& x, std::span<const Tensor> columns, const Fp8Thin& beside,
                   std::int64_t width) const;
  Fp8Rows empty_rows(std::int64_t rows, std::int64_t width) const;
  Fp8Thin thin(const Tensor& values) const;
  void multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                const Tensor& addend) const;

  Backend& backend_;
  std::vector<Fp8Part> parts_;
  Fp8Kernels* kernels_ = nullptr;
};

// Whether FP8 products serve a matrix (N,K) in that format at all: a scale for each row or for all,
// and sides that are multiples of 16.
bool fp8_products_serve(const QuantisedFormat& format, const Shape& shape);

// Backend::linear_forward and linear_backward_x of a quantised weight: in FP8, or of dense scratch.
void quantised_forward(Backend& backend, const Tensor& y, const Tensor& x, const Weight& w);
void quantised_backward_x(Backend& backend, const Tensor& dx, GradMode mode, const Tensor& dy,
                          const Weight& w);

}  // namespace lk
