// DoRA's kernels: row norms of W + s B A, columns times m / norm, and the gradient of m.
//
// Shapes     y, x, dy, v (T,N); m, inverse, w_sq, dm (N); wa (N,R), gram (R,R), b (N,R)
// Plan       inverse_norms: a thread per row, R^2 multiplications with gram from L1. scale_columns:
//            rowwise.cuh, an element per thread. column_dots: 32 columns a block; 8 warps walk the
//            tokens, warp w taking t = w, w + 8, ...; their sums are added in the order of the warps
// Bytes      each matrix once; w_sq, wa and b once
// Numbers    F32 sums in an order that depends on T alone: two runs give the same bits
// Limits     no vector loads: these are small beside the frozen product that they follow
#include "cuda/lora/dora_kernels.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

constexpr int kThreads = 128, kColumns = 32, kWarps = 8;

template <class T>
__global__ void __launch_bounds__(kThreads)
    inverse_norms_kernel(float* inverse, const float* w_sq, Matrix<const float> wa,
                         Matrix<const float> gram, Matrix<const T> b, i64 n_rows, int rank,
                         float s) {
  i64 n = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= n_rows) return;
  float cross = 0.0f, square = 0.0f;
  for (int r = 0; r < rank; ++r) {
    const float br = to_float(*b.at(n, r));
    cross = fmaf(*wa.at(n, r), br, cross);
    float sum = 0.0f;
    for (int q = 0; q < rank; ++q) sum = fmaf(*gram.at(r, q), to_float(*b.at(n, q)), sum);
    square = fmaf(br, sum, square);
  }
  const float norm_sq = w_sq[n] + 2.0f * s * cross + s * s * square;
  inverse[n] = norm_sq > 0.0f ? 1.0f / sqrtf(norm_sq) : 0.0f;
}

template <class T>
struct ScaleColumnsOp {
  static constexpr int kWidth = 1;
  Matrix<T> y;
  Matrix<const T> x;
  const float *m, *inverse;
  const T* shift;  // or null
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    const float at = shift ? to_float(shift[col]) : 0.0f;
    float v[1] = {m[col] * inverse[col] * (to_float(*x.at(row, col)) - at) + at};
    write_pack<1>(y.at(row, col), v, accumulate);
  }
};

template <class T>
__global__ void __launch_bounds__(kColumns* kWarps)
    column_dots_kernel(float* dm, Matrix<const T> dy, Matrix<const T> v, const float* inverse,
                       i64 n_rows, i64 n_cols, bool accumulate) {
  __shared__ float partial[kWarps][kColumns];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const i64 col = static_cast<i64>(blockIdx.x) * kColumns + lane;
  float sum = 0.0f;
  if (col < n_cols)
    for (i64 t = warp; t < n_rows; t += kWarps)
      sum = fmaf(to_float(*dy.at(t, col)), to_float(*v.at(t, col)), sum);
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || col >= n_cols) return;
  for (int w = 1; w < kWarps; ++w) sum += partial[w][lane];
  sum *= inverse[col];
  dm[col] = accumulate ? dm[col] + sum : sum;
}

}  // namespace

void CudaDoraKernels::inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Tensor& wa,
                                    const Tensor& gram, const Tensor& b, double s) {
  const i64 n = b.rows();
  dispatch_device(b.dtype(), [&]<class T>() {
    launch("inverse_norms", inverse_norms_kernel<device_t<T>>, grid_of(ceil_div(n, kThreads)),
           dim3(kThreads), 0, backend_.stream(), inverse.data<float>(),
           static_cast<const float*>(w_sq.data<float>()), const_matrix<float>(wa),
           const_matrix<float>(gram), const_matrix<T>(b), n, static_cast<int>(b.cols()),
           static_cast<float>(s));
  });
}

void CudaDoraKernels::scale_columns(const Tensor& y, GradMode mode, const Tensor& x,
                                    const Tensor& m, const Tensor& inverse, const Weight* shift) {
  dispatch_device(y.dtype(), [&]<class T>() {
    const device_t<T>* at = shift ? pointer<T>(shift->values()) : nullptr;
    launch_rowwise("scale_columns", y.rows(), y.cols(), backend_.stream(),
                   ScaleColumnsOp<device_t<T>>{matrix<T>(y), const_matrix<T>(x), m.data<float>(),
                                               inverse.data<float>(), at, mode == GradMode::Add});
  });
}

void CudaDoraKernels::run_column_dots(const Tensor& dm, GradMode mode, const Tensor& dy,
                                      const Tensor& v, const Tensor& inverse) {
  dispatch_device(dy.dtype(), [&]<class T>() {
    launch("column_dots", column_dots_kernel<device_t<T>>, grid_of(ceil_div(dy.cols(), kColumns)),
           dim3(kColumns, kWarps), 0, backend_.stream(), dm.data<float>(), const_matrix<T>(dy),
           const_matrix<T>(v), static_cast<const float*>(inverse.data<float>()), dy.rows(),
           dy.cols(), mode == GradMode::Add);
  });
}

}  // namespace lk
