// DoRA's kernels: row norms of W + s B A, columns times m / norm, and that product's backward.
//
// Shapes     y, x, dy, dv, v (T,N); m, inverse, w_sq, dm (N); wa (N,R), gram (R,R), b (N,R)
// Plan       inverse_norms: a warp per row, a lane per thin column. scale_columns: rowwise.cuh.
//            Its backward in two launches: a block walks 64 tokens of 32 packs of columns, each of
//            its 8 warps every eighth token, writes dv and its sums of dy v; then a block adds the
//            blocks' sums of 32 columns.
// Bytes      each matrix once; w_sq, wa and b once; partial sums are N T / 16 bytes
// Numbers    F32 sums in an order that depends on the shapes alone: two runs give the same bits
#include "cuda/lora/dora_kernels.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

constexpr int kWarps = 8;    // of a block
constexpr int kTokens = 64;  // of a block of the backward

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    inverse_norms_kernel(float* inverse, const float* w_sq, Matrix<const float> wa,
                         Matrix<const float> gram, Matrix<const T> b, i64 n_rows, int rank,
                         float s) {
  const i64 n = static_cast<i64>(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= n_rows) return;
  float cross = 0.0f, square = 0.0f;
  for (int r = static_cast<int>(threadIdx.x); r < rank; r += 32) {
    const float br = to_float(*b.at(n, r));
    cross = fmaf(*wa.at(n, r), br, cross);
    float sum = 0.0f;
    for (int q = 0; q < rank; ++q) sum = fmaf(*gram.at(q, r), to_float(*b.at(n, q)), sum);
    square = fmaf(br, sum, square);
  }
  float added = 2.0f * s * cross + s * s * square;
  for (int lanes = 16; lanes > 0; lanes /= 2) added += __shfl_xor_sync(~0u, added, lanes);
  if (threadIdx.x != 0) return;
  const float norm_sq = w_sq[n] + added;
  inverse[n] = norm_sq > 0.0f ? 1.0f / sqrtf(norm_sq) : 0.0f;
}

template <class T, int N>
struct ScaleColumnsOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  const float *m, *inverse;
  const T* shift;  // or null
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float at = shift ? to_float(shift[col + i]) : 0.0f;
      v[i] = m[col + i] * inverse[col + i] * (v[i] - at) + at;
    }
    write_pack<N>(y.at(row, col), v, accumulate);
  }
};

// partial[chunk][col] = the chunk's sum of dy v
template <class T, int N>
__global__ void __launch_bounds__(32 * kWarps)
    scale_columns_backward_kernel(Matrix<T> dv, float* partial, Matrix<const T> dy,
                                  Matrix<const T> v, const float* m, const float* inverse,
                                  i64 n_rows, i64 n_cols) {
  __shared__ float sums[kWarps][32 * N];
  const i64 first_col = static_cast<i64>(blockIdx.x) * 32 * N, col = first_col + threadIdx.x * N;
  const i64 first = static_cast<i64>(blockIdx.y) * kTokens;
  const i64 last = first + kTokens < n_rows ? first + kTokens : n_rows;
  float sum[N] = {};
  if (col < n_cols) {
    float factor[N];
#pragma unroll
    for (int i = 0; i < N; ++i) factor[i] = m[col + i] * inverse[col + i];
#pragma unroll 2
    for (i64 t = first + threadIdx.y; t < last; t += kWarps) {
      float g[N], at[N];
      load_pack<N>(dy.at(t, col), g);
      load_pack<N>(v.at(t, col), at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum[i] = fmaf(g[i], at[i], sum[i]);
        g[i] *= factor[i];
      }
      write_pack<N>(dv.at(t, col), g, false);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) sums[threadIdx.y][threadIdx.x * N + i] = sum[i];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
       c < 32 * N && first_col + c < n_cols; c += 32 * kWarps) {
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums[w][c];
    partial[static_cast<i64>(blockIdx.y) * n_cols + first_col + c] = all;
  }
}

// dm (+)= inverse sum of partial[chunk] over the chunks: each warp's in order, then the warps'.
__global__ void __launch_bounds__(32 * kWarps)
    add_chunks_kernel(float* dm, const float* partial, const float* inverse, i64 chunks, i64 n_cols,
                      bool accumulate) {
  __shared__ float sums[kWarps][32];
  const i64 col = static_cast<i64>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0.0f;
  if (col < n_cols)
#pragma unroll 4
    for (i64 chunk = threadIdx.y; chunk < chunks; chunk += kWarps)
      sum += partial[chunk * n_cols + col];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= n_cols) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += sums[w][threadIdx.x];
  sum *= inverse[col];
  dm[col] = accumulate ? dm[col] + sum : sum;
}

}  // namespace

void CudaDoraKernels::inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Tensor& wa,
                                    const Tensor& gram, const Tensor& b, double s) {
  const i64 n = b.rows();
  dispatch_device(b.dtype(), [&]<class T>() {
    launch("inverse_norms", inverse_norms_kernel<device_t<T>>, grid_of(ceil_div(n, kWarps)),
           dim3(32, kWarps), 0, backend_.stream(), inverse.data<float>(),
           static_cast<const float*>(w_sq.data<float>()), const_matrix<float>(wa),
           const_matrix<float>(gram), const_matrix<T>(b), n, static_cast<int>(b.cols()),
           static_cast<float>(s));
  });
}

void CudaDoraKernels::scale_columns(const Tensor& y, GradMode mode, const Tensor& x,
                                    const Tensor& m, const Tensor& inverse, const Weight* shift) {
  dispatch_device(y.dtype(), [&]<class T>() {
    const device_t<T>* at = shift ? pointer<T>(shift->values()) : nullptr;
    auto go = [&]<int N>() {
      launch_rowwise(
          "scale_columns", y.rows(), y.cols(), backend_.stream(),
          ScaleColumnsOp<device_t<T>, N>{matrix<T>(y), const_matrix<T>(x), m.data<float>(),
                                         inverse.data<float>(), at, mode == GradMode::Add});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, y.cols(), y, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

void CudaDoraKernels::run_scale_columns_backward(const Tensor& dv, const Tensor& dm, GradMode mode,
                                                 const Tensor& dy, const Tensor& v, const Tensor& m,
                                                 const Tensor& inverse) {
  const i64 rows = dy.rows(), cols = dy.cols(), chunks = ceil_div(rows, kTokens);
  Tensor partial = backend_.empty(Tag::Workspace, DType::F32, {chunks, cols});
  const float* norms = inverse.data<float>();
  dispatch_device(dy.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch("scale_columns_backward", scale_columns_backward_kernel<device_t<T>, N>,
             grid_of(ceil_div(cols, 32 * N), chunks), dim3(32, kWarps), 0, backend_.stream(),
             matrix<T>(dv), partial.data<float>(), const_matrix<T>(dy), const_matrix<T>(v),
             static_cast<const float*>(m.data<float>()), norms, rows, cols);
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, cols, dv, dy, v) ? go.template operator()<kN>() : go.template operator()<1>();
  });
  launch("add_chunks", add_chunks_kernel, grid_of(ceil_div(cols, 32)), dim3(32, kWarps), 0,
         backend_.stream(), dm.data<float>(), static_cast<const float*>(partial.data<float>()),
         norms, chunks, cols, mode == GradMode::Add);
}

}  // namespace lk
