// RMSNorm: y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps). Forward and backward into x.
//
// Shapes     x, y, dx, dy (T,C) with row strides, gain (C) frozen, rstd (T) F32
// Plan       short rows (C <= 1024 in BF16): one warp per row, which stays in registers, so nothing
//            is read twice and no thread waits for another warp. Longer rows: one block per row, 64
//            to 512 threads by C, and two sweeps of the row: the first sums, the second writes and
//            finds the row in L1/L2.
// Bytes      forward: x once, y once. backward: x, dy once, dx once (read too when adding).
// Numbers    sums in F32, in a fixed order (reduce.cuh)
#include "cuda/cuda_backend.h"
#include "cuda/norm.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kRowsPerBlock = 8;  // short rows per block, one per warp

// Pack i of a warp's row, or zeros behind the row's end.
template <int N, class T>
__device__ __forceinline__ void load_of_row(const T* row, int pack, int cols, float (&v)[N]) {
  const int col = (pack * 32 + static_cast<int>(threadIdx.x) % 32) * N;
  if (col < cols) {
    load_pack<N>(row + col, v);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = 0.0f;
  }
}

template <int N, int PACKS, class T>
__global__ void __launch_bounds__(32 * kRowsPerBlock)
    rmsnorm_forward_short_kernel(Matrix<T> y, float* rstd, Matrix<const T> x, const T* gain,
                                 i64 rows, int cols, float eps) {
  wait_for_previous();  // Note [Early launches]
  const int lane = threadIdx.x % 32;
  const i64 row = static_cast<i64>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  float v[PACKS][N], sum = 0.0f;
#pragma unroll
  for (int p = 0; p < PACKS; ++p) load_of_row<N>(x.at(row, 0), p, cols, v[p]);
#pragma unroll
  for (int p = 0; p < PACKS; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(v[p][i], v[p][i], sum);
  float r = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(cols) + eps);
  if (lane == 0) rstd[row] = r;
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    const int col = (p * 32 + lane) * N;
    if (col >= cols) break;
    float w[N];
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) v[p][i] = v[p][i] * r * w[i];
    store_pack<N>(y.at(row, col), v[p]);
  }
}

// The maths of rmsnorm_backward_kernel, for a row that a warp holds in registers.
template <int N, int PACKS, class T>
__global__ void __launch_bounds__(32 * kRowsPerBlock, 3)
    rmsnorm_backward_short_kernel(Matrix<T> dx, Matrix<const T> dy, Matrix<const T> x,
                                  const T* gain, const float* rstd, i64 rows, int cols,
                                  bool accumulate) {
  const int lane = threadIdx.x % 32;
  const i64 row = static_cast<i64>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  const float r = rstd[row];
  float xhat[PACKS][N], g[PACKS][N], sum = 0.0f;
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    load_of_row<N>(x.at(row, 0), p, cols, xhat[p]);
    load_of_row<N>(dy.at(row, 0), p, cols, g[p]);
  }
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    float w[N];
    load_of_row<N>(gain, p, cols, w);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      xhat[p][i] *= r;
      g[p][i] *= w[i];
      sum = fmaf(g[p][i], xhat[p][i], sum);
    }
  }
  const float mean = warp_sum(sum) / static_cast<float>(cols);
#pragma unroll
  for (int p = 0; p < PACKS; ++p) {
    const int col = (p * 32 + lane) * N;
    if (col >= cols) break;
#pragma unroll
    for (int i = 0; i < N; ++i) g[p][i] = r * (g[p][i] - xhat[p][i] * mean);
    write_pack<N>(dx.at(row, col), g[p], accumulate);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(512)
    rmsnorm_forward_kernel(Matrix<T> y, float* rstd, Matrix<const T> x, const T* gain, int cols,
                           float eps) {
  wait_for_previous();  // Note [Early launches]
  i64 row = blockIdx.x;
  float sum = 0.0f;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(v[i], v[i], sum);
  }
  float r = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(cols) + eps);
  if (threadIdx.x == 0) rstd[row] = r;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], w[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = v[i] * r * w[i];
    store_pack<N>(y.at(row, col), v);
  }
}

// With g = dy * gain and xhat = x * rstd:  dx (+)= rstd * (g - xhat * mean(g * xhat))
template <int N, class T>
__global__ void __launch_bounds__(512)
    rmsnorm_backward_kernel(Matrix<T> dx, Matrix<const T> dy, Matrix<const T> x, const T* gain,
                            const float* rstd, int cols, bool accumulate) {
  i64 row = blockIdx.x;
  float r = rstd[row], sum = 0.0f;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], g[N], w[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(dy.at(row, col), g);
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(g[i] * w[i], v[i] * r, sum);
  }
  float mean = block_sum(sum) / static_cast<float>(cols);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], g[N], w[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(dy.at(row, col), g);
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = r * (g[i] * w[i] - v[i] * r * mean);
    write_pack<N>(dx.at(row, col), v, accumulate);
  }
}

// Calls short_rows with the packs of a lane where a warp can hold a row; otherwise calls long_rows.
template <int N, class Short, class Long>
void choose_plan(i64 cols, Short&& short_rows, Long&& long_rows) {
  if (cols <= 32 * N)
    short_rows.template operator()<1>();
  else if (cols <= 4 * 32 * N)
    short_rows.template operator()<4>();
  else
    long_rows();
}

}  // namespace

void CudaBackend::rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                  const Weight& gain, double eps) {
  check(x.cols() <= INT32_MAX, "cuda rmsnorm: row too long");
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      auto short_rows = [&]<int PACKS>() {
        launch_early("rmsnorm_forward", rmsnorm_forward_short_kernel<N, PACKS, device_t<T>>,
                     grid_of(ceil_div(x.rows(), kRowsPerBlock)), dim3(32 * kRowsPerBlock), 0,
                     stream(), matrix<T>(y), rstd.data<float>(), const_matrix<T>(x),
                     pointer<T>(gain.values()), x.rows(), x.cols(), eps);
      };
      choose_plan<N>(x.cols(), short_rows, [&] {
        launch_early("rmsnorm_forward", rmsnorm_forward_kernel<N, device_t<T>>, grid_of(x.rows()),
                     dim3(norm_threads(x.cols(), N)), 0, stream(), matrix<T>(y), rstd.data<float>(),
                     const_matrix<T>(x), pointer<T>(gain.values()), x.cols(), eps);
      });
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, x.cols(), x, y, gain.values()) ? go.template operator()<kN>()
                                                : go.template operator()<1>();
  });
}

void CudaBackend::rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                   const Tensor& x, const Weight& gain, const Tensor& rstd) {
  check(x.cols() <= INT32_MAX, "cuda rmsnorm: row too long");
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      auto short_rows = [&]<int PACKS>() {
        launch("rmsnorm_backward", rmsnorm_backward_short_kernel<N, PACKS, device_t<T>>,
               grid_of(ceil_div(x.rows(), kRowsPerBlock)), dim3(32 * kRowsPerBlock), 0, stream(),
               matrix<T>(dx), const_matrix<T>(dy), const_matrix<T>(x), pointer<T>(gain.values()),
               rstd.data<float>(), x.rows(), x.cols(), mode == GradMode::Add);
      };
      choose_plan<N>(x.cols(), short_rows, [&] {
        launch("rmsnorm_backward", rmsnorm_backward_kernel<N, device_t<T>>, grid_of(x.rows()),
               dim3(norm_threads(x.cols(), N)), 0, stream(), matrix<T>(dx), const_matrix<T>(dy),
               const_matrix<T>(x), pointer<T>(gain.values()), rstd.data<float>(), x.cols(),
               mode == GradMode::Add);
      });
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, x.cols(), x, dx, dy, gain.values()) ? go.template operator()<kN>()
                                                     : go.template operator()<1>();
  });
}

}  // namespace lk
