#include "tensor/fp8_product.h"

#include <algorithm>

#include "tensor/dense_scratch.h"
#include "tensor/quantised_kernels.h"

namespace lk {
namespace {

constexpr std::int64_t kMultiple = 16;  // of both sides: what tensor cores and their copies want
constexpr std::int64_t kStep = 128;     // columns that a product takes at a time

// Columns of codes of a sum over `length` and of a low-rank term's pairs.
std::int64_t with_pairs(std::int64_t length, const Fp8LowRank& low) {
  if (!low.s) return length;
  return (length + 3 * low.s.cols() + kStep - 1) / kStep * kStep;
}

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

Fp8Rows Fp8Product::empty_rows(std::int64_t rows, std::int64_t width) const {
  return {backend_.empty(Tag::Workspace, DType::U8, {rows, width}),
          backend_.empty(Tag::Workspace, DType::F32, {rows})};
}

Fp8Thin Fp8Product::thin(const Tensor& values) const {
  if (!values) return {};
  return {values, backend_.empty(Tag::Workspace, DType::F32, {Fp8Thin::kBounds})};
}

Fp8Rows Fp8Product::quantise(const Tensor& x, std::span<const Tensor> columns,
                             const Fp8Thin& beside, std::int64_t width) const {
  Fp8Rows q = empty_rows(x.rows(), width);
  kernels_->quantise_rows(q, x, columns, beside);
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

// Codes are copied to have the factor's beside them, all parts below each other: one product.
void Fp8Product::forward(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& addend,
                         const Fp8LowRank& low) const {
  const std::int64_t N = parts_.back().end, K = x.cols(), width = with_pairs(K, low);
  if (!low.s) {
    const Fp8Rows codes = quantise(x, {}, {}, K);
    for (const Fp8Part& p : parts_)
      multiply(y.slice_cols(p.begin, p.end), mode, codes, rows_of(*p.w),
               addend ? addend.slice_cols(p.begin, p.end) : Tensor());
    return;
  }
  const Fp8Rows all = empty_rows(N, width);
  const Tensor scales = all.scales.reshape({N, 1});
  for (const Fp8Part& p : parts_)
    kernels_->put({all.codes.slice_rows(p.begin, p.end).slice_cols(0, K),
                   scales.slice_rows(p.begin, p.end).reshape({p.end - p.begin})},
                  rows_of(*p.w));
  const Fp8Thin f = thin(low.f);
  kernels_->quantise_factor(all.codes.slice_cols(K, width), f, false, all.scales);
  multiply(y, mode, quantise(x, {}, {low.s, f.bounds}, width), all, addend);
}

void Fp8Product::backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                            const Fp8LowRank& low) const {
  std::vector<Tensor> scales;
  for (const Fp8Part& p : parts_) scales.push_back(rows_of(*p.w).scales);
  const std::int64_t N = parts_.back().end, width = with_pairs(N, low);
  const Fp8Rows turned = empty_rows(dx.cols(), width);
  for (const Fp8Part& p : parts_)
    kernels_->transpose({turned.codes.slice_cols(p.begin, p.end), turned.scales},
                        rows_of(*p.w).codes);
  const Fp8Thin f = thin(low.f);
  if (low.s) kernels_->quantise_factor(turned.codes.slice_cols(N, width), f, true, turned.scales);
  multiply(dx, mode, quantise(dy, scales, {low.s, f.bounds}, width), turned, {});
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
