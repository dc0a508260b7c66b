// Matrix products.
#include "tensor/cpu/cpu_backend_impl.h"
#include "tensor/cpu/few_rows.h"
#include "tensor/cpu/gemm.h"
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/onednn_linear.h"
#include "tensor/cpu/quantised_linear.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

// c (M,N) (+)= alpha a (M,K) b (N,K)^T
template <class T, class TC>
void matmul_nt_plain(Matrix<TC> c, GradMode mode, double alpha, Matrix<const T> a,
                     Matrix<const T> b) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      A dot = 0;
      for (std::int64_t k = 0; k < a.cols; ++k) dot += load(a[i][k]) * load(b[j][k]);
      put(c[i][j], mode, static_cast<A>(alpha) * dot);
    }
}

// c (M,N) (+)= alpha a (M,K) b (K,N)
template <class T, class TC>
void matmul_nn_plain(Matrix<TC> c, GradMode mode, double alpha, Matrix<const T> a,
                     Matrix<const T> b) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      A dot = 0;
      for (std::int64_t k = 0; k < a.cols; ++k) dot += load(a[i][k]) * load(b[k][j]);
      put(c[i][j], mode, static_cast<A>(alpha) * dot);
    }
}

// c (P,Q) (+)= alpha a (T,P)^T b (T,Q)
template <class T, class TC>
void matmul_tn_plain(Matrix<TC> c, GradMode mode, double alpha, Matrix<const T> a,
                     Matrix<const T> b) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      A dot = 0;
      for (std::int64_t t = 0; t < a.rows; ++t) dot += load(a[t][i]) * load(b[t][j]);
      put(c[i][j], mode, static_cast<A>(alpha) * dot);
    }
}

// y (T,N) = x (T,K) w^T, w quantised: exactly dequantised, then multiplied
template <class T>
void quantised_forward_plain(Matrix<T> y, Matrix<const T> x, const Weight& w) {
  using A = accumulate_t<T>;
  std::vector<float> row(static_cast<std::size_t>(x.cols));
  for (std::int64_t j = 0; j < y.cols; ++j) {
    quantised_row(w, j, row.data());
    for (std::int64_t i = 0; i < y.rows; ++i) {
      A dot = 0;
      for (std::int64_t k = 0; k < x.cols; ++k)
        dot += load(x[i][k]) * static_cast<A>(row[static_cast<std::size_t>(k)]);
      y[i][j] = rounded<T>(dot);
    }
  }
}

// Calls f<T, TC> for the dtypes of operands and result: the same, or a result in the operands'
// accumulation type.
template <class F>
void dispatch_product(const Tensor& c, const Tensor& a, const Tensor& b, F&& f) {
  check(a.dtype() == b.dtype(), "matmul: operands are ", dtype_name(a.dtype()), " and ",
        dtype_name(b.dtype()));
  dispatch_float(a.dtype(), [&]<class T>() {
    if (c.dtype() == a.dtype())
      f.template operator()<T, T>();
    else
      f.template operator()<T, accumulate_t<T>>();
  });
}

template <class T>
Strided<T> rows_of(const Tensor& t) {
  return {t.data<std::remove_const_t<T>>(), t.ld(), 1};
}
template <class T>
Matrix<const T> operand(const Tensor& t) {
  return {t.data<T>(), t.rows(), t.cols(), t.ld()};
}

}  // namespace

bool CpuBackend::keeps_quantised(const GgmlType& type) const { return multiplies_quantised(type); }

// Our own tiles (gemm.cpp) need no packing.
void CpuBackend::prepare_linear(Weight& w) {
  if (w.quantised()) {
    if (fast() && w.dtype() != DType::F64)
      w.replace_blocks(std::make_shared<QuantisedLinear>(*this, w));
    return;
  }
  if (use_onednn(w.dtype())) w.set_packed(std::make_shared<OnednnLinear>(*this, w.values()));
}

void CpuBackend::linear_forward(const Tensor& y, const Tensor& x, const Weight& w) {
  if (w.quantised()) {
    if (auto* packed = dynamic_cast<const QuantisedLinear*>(w.packed()))
      return packed->forward(y, x);
    return dispatch_float(
        x.dtype(), [&]<class T>() { quantised_forward_plain<T>(matrix<T>(y), operand<T>(x), w); });
  }
  auto* packed = dynamic_cast<const OnednnLinear*>(w.packed());
  // Our own tiles take any number of rows in one order of sums, which Note [Batch independence]
  // promises; beside oneDNN's, whose order is unknown, decoding reads its weights as they lie.
  if (packed && y.rows() <= kFewRows)
    linear_few_rows(y, x, w.values());
  else if (packed)
    packed->forward(y, x);
  else
    matmul_nt(y, GradMode::Write, 1.0, x, w.values());
}

void CpuBackend::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                   const Weight& w) {
  auto* packed = dynamic_cast<const OnednnLinear*>(w.packed());
  if (packed && dx.rows() > kFewRows)
    packed->backward(dx, mode, dy);
  else
    matmul_nn(dx, mode, 1.0, dy, w.values());
}

void CpuBackend::matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b) {
  if (mode == GradMode::Skip) return;
  dispatch_product(c, a, b, [&]<class T, class TC>() {
    if constexpr (has_fast_path<T>)
      if (fast())
        return gemm<T, TC>(*this, rows_of<TC>(c), mode, alpha, rows_of<const T>(a),
                           rows_of<const T>(b).transposed(), c.rows(), c.cols(), a.cols());
    matmul_nt_plain(matrix<TC>(c), mode, alpha, operand<T>(a), operand<T>(b));
  });
}

void CpuBackend::matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b) {
  if (mode == GradMode::Skip) return;
  dispatch_product(c, a, b, [&]<class T, class TC>() {
    if constexpr (has_fast_path<T>)
      if (fast())
        return gemm<T, TC>(*this, rows_of<TC>(c), mode, alpha, rows_of<const T>(a),
                           rows_of<const T>(b), c.rows(), c.cols(), a.cols());
    matmul_nn_plain(matrix<TC>(c), mode, alpha, operand<T>(a), operand<T>(b));
  });
}

void CpuBackend::matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                           const Tensor& b) {
  if (mode == GradMode::Skip) return;
  dispatch_product(dw, a, b, [&]<class T, class TC>() {
    if constexpr (has_fast_path<T>)
      if (fast())
        return gemm<T, TC>(*this, rows_of<TC>(dw), mode, alpha, rows_of<const T>(a).transposed(),
                           rows_of<const T>(b), dw.rows(), dw.cols(), a.rows());
    matmul_tn_plain(matrix<TC>(dw), mode, alpha, operand<T>(a), operand<T>(b));
  });
}

}  // namespace lk
