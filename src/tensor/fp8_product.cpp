#include "tensor/fp8_product.h"

#include <algorithm>

#include "tensor/dense_scratch.h"
#include "tensor/quantised_kernels.h"

namespace lk {
namespace {

constexpr std::int64_t kMultiple = 16;  // of both sides: what tensor cores and their copies want

bool runs(const Weight& w) {
  return w.quantised() && w.quantised()->format.multiplied && w.has_values();
}

Fp8Rows rows_of(const Weight& w) {
  const QuantisedMatrix& q = *w.quantised();
  return {q[Plane::Codes], q[Plane::Scales].reshape({w.shape()[0]})};
}

// The matrix as a weight, to dequantise it.
Weight as_weight(const Fp8Rows& m, DType dtype) {
  const QuantisedFormat format{Encoding::Fp8, nullptr, m.codes.cols(), 1};
  return {"fp8 rows",
          {format, 0, {m.codes, m.scales.reshape({m.codes.rows(), 1})}},
          m.codes.shape(),
          dtype};
}

}  // namespace

bool fp8_products_serve(const QuantisedFormat& format, const Shape& shape) {
  return format.encoding == Encoding::Fp8 && format.block >= shape[1] &&
         (format.scale_rows == 1 || format.scale_rows >= shape[0]) && shape[0] % kMultiple == 0 &&
         shape[1] % kMultiple == 0;
}

Fp8Product::Fp8Product(Backend& backend, std::vector<Fp8Part> parts, std::int64_t rows, DType dtype)
    : backend_(backend), parts_(std::move(parts)) {
  if (rows < kFewestRows || parts_.size() > Fp8Kernels::kMostColumns ||
      !std::all_of(parts_.begin(), parts_.end(), [](const Fp8Part& p) { return runs(*p.w); }))
    return;
  Fp8Kernels* kernels = backend.quantised_kernels()->fp8_kernels();
  if (kernels && kernels->takes(dtype)) kernels_ = kernels;
}

Fp8Rows Fp8Product::quantise(const Tensor& x, std::span<const Tensor> columns) const {
  Fp8Rows q{backend_.empty(Tag::Workspace, DType::U8, x.shape()),
            backend_.empty(Tag::Workspace, DType::F32, {x.rows()})};
  kernels_->quantise_rows(q, x, columns);
  return q;
}

// What the device has no kernel for is multiplied in the compute dtype: the codes' own numbers, but
// for their rounding.
void Fp8Product::multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                          const Tensor& addend) const {
  if (kernels_->multiply(y, mode, a, b, addend)) return;
  const Weight w = as_weight(b, y.dtype());
  Tensor x = backend_.empty(Tag::Workspace, y.dtype(), a.codes.shape()),
         dense = backend_.empty(Tag::Workspace, y.dtype(), b.codes.shape());
  backend_.quantised_kernels()->dequantise(x, as_weight(a, y.dtype()));
  backend_.quantised_kernels()->dequantise(dense, w);
  backend_.matmul_nt(y, mode, 1.0, x, dense, addend);
}

void Fp8Product::forward(const Tensor& y, GradMode mode, const Tensor& x,
                         const Tensor& addend) const {
  const Fp8Rows codes = quantise(x, {});
  for (const Fp8Part& p : parts_)
    multiply(y.slice_cols(p.begin, p.end), mode, codes, rows_of(*p.w),
             addend ? addend.slice_cols(p.begin, p.end) : Tensor());
}

void Fp8Product::backward_x(const Tensor& dx, GradMode mode, const Tensor& dy) const {
  std::vector<Tensor> scales;
  for (const Fp8Part& p : parts_) scales.push_back(rows_of(*p.w).scales);
  const Fp8Rows codes = quantise(dy, scales);
  const std::int64_t K = dx.cols();
  const Fp8Rows transposed{backend_.empty(Tag::Workspace, DType::U8, {K, parts_.back().end}),
                           backend_.empty(Tag::Workspace, DType::F32, {K})};
  for (const Fp8Part& p : parts_)
    kernels_->transpose({transposed.codes.slice_cols(p.begin, p.end), transposed.scales},
                        rows_of(*p.w).codes);
  multiply(dx, mode, codes, transposed, {});
}

void quantised_forward(Backend& backend, const Tensor& y, const Tensor& x, const Weight& w) {
  if (const Fp8Product product{backend, w, x.rows(), x.dtype()})
    return product.forward(y, GradMode::Write, x);
  DenseScratch(backend, w).linear_forward(y, x);
}

void quantised_backward_x(Backend& backend, const Tensor& dx, GradMode mode, const Tensor& dy,
                          const Weight& w) {
  if (const Fp8Product product{backend, w, dy.rows(), dy.dtype()})
    return product.backward_x(dx, mode, dy);
  DenseScratch(backend, w).linear_backward_x(dx, mode, dy);
}

}  // namespace lk
