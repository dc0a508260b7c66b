// Matrix products.
#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/few_rows.h"
#include "cpu/fast/gemm.h"
#include "cpu/fast/onednn_linear.h"
#include "cpu/fast/quantised_linear.h"
#include "cpu/kernels.h"
#include "tensor/fp8_product.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

// c (M,N) (+)= alpha a (M,K) b (K,N)
template <class T, class TC>
void gemm_plain(Strided<TC> c, GradMode mode, double alpha, Strided<const T> a, Strided<const T> b,
                std::int64_t M, std::int64_t N, std::int64_t K) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < M; ++i)
    for (std::int64_t j = 0; j < N; ++j) {
      A dot = 0;
      for (std::int64_t k = 0; k < K; ++k)
        dot += load(a.data[i * a.row + k * a.col]) * load(b.data[k * b.row + j * b.col]);
      put(c.data[i * c.row + j * c.col], mode, static_cast<A>(alpha) * dot);
    }
}

template <class T>
Strided<T> rows_of(const Tensor& t) {
  return {t.data<std::remove_const_t<T>>(), t.ld(), 1};
}
template <class T>
Strided<const T> operand(const Tensor& t, bool transposed) {
  return transposed ? rows_of<const T>(t).transposed() : rows_of<const T>(t);
}

}  // namespace

bool CpuBackend::keeps_quantised(const GgmlType& type) const { return multiplies_quantised(type); }

void CpuBackend::prepare_linear(Weight& w) {  // our own tiles (fast/gemm.cpp) need no packing
  if (w.quantised()) {
    const GgmlType* type = w.quantised()->format.blocks;
    if (fast() && w.dtype() != DType::F64 && type && keeps_quantised(*type))
      w.replace_quantised(std::make_shared<QuantisedLinear>(*this, w));
    return;
  }
  if (use_onednn(w.dtype())) w.set_packed(std::make_shared<OnednnLinear>(*this, w.values()));
}

void CpuBackend::linear_forward(const Tensor& y, const Tensor& x, const Weight& w) {
  if (w.quantised()) {
    if (auto* packed = dynamic_cast<const QuantisedLinear*>(w.packed()))
      return packed->forward(y, x);
    if (fast() && y.dtype() != DType::F64 && y.rows() <= kFewRows) return few_rows_of(y, x, w);
    return quantised_forward(*this, y, x, w);
  }
  auto* packed = dynamic_cast<const OnednnLinear*>(w.packed());
  // Our own tiles take any number of rows in one order of sums, which Note [Batch independence]
  // promises. oneDNN's order is unknown, so next to it decoding reads its weights in place.
  if (packed && y.rows() <= kFewRows)
    linear_few_rows(y, x, w.values());
  else if (packed)
    packed->forward(y, x);
  else if (y.rows() > kFewRows && use_onednn(w.dtype()))
    onednn_forward(y, x, w.values());
  else
    matmul_nt(y, GradMode::Write, 1.0, x, w.values(), {});
}

void CpuBackend::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                   const Weight& w) {
  if (w.quantised()) return quantised_backward_x(*this, dx, mode, dy, w);
  auto* packed = dynamic_cast<const OnednnLinear*>(w.packed());
  if (dx.rows() <= kFewRows || !use_onednn(w.dtype()))
    matmul_nn(dx, mode, 1.0, dy, w.values());
  else if (packed)
    packed->backward(dx, mode, dy);
  else
    onednn_backward(dx, mode, dy, w.values());
}

void CpuBackend::product(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                         bool a_transposed, const Tensor& b, bool b_transposed) {
  check(a.dtype() == b.dtype(), "matmul: operands are ", dtype_name(a.dtype()), " and ",
        dtype_name(b.dtype()));
  const std::int64_t K = a_transposed ? a.rows() : a.cols();
  dispatch_float(a.dtype(), [&]<class T>() {
    auto run = [&]<class TC>() {
      const Strided<TC> to = rows_of<TC>(c);
      const Strided<const T> left = operand<T>(a, a_transposed),
                             right = operand<T>(b, b_transposed);
      if constexpr (has_fast_path<T>)
        if (fast()) return gemm<T, TC>(*this, to, mode, alpha, left, right, c.rows(), c.cols(), K);
      gemm_plain<T, TC>(to, mode, alpha, left, right, c.rows(), c.cols(), K);
    };
    if (c.dtype() == a.dtype())
      run.template operator()<T>();
    else
      run.template operator()<accumulate_t<T>>();
  });
}

void CpuBackend::matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b, const Tensor& addend) {
  check(!addend || mode == GradMode::Write, "matmul_nt: an addend and an accumulating mode");
  product(c, mode, alpha, a, false, b, true);
  if (addend) add(c, addend, c);
}

void CpuBackend::matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b) {
  product(c, mode, alpha, a, false, b, false);
}

void CpuBackend::matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b) {
  product(dw, mode, alpha, a, true, b, false);
}

}  // namespace lk
