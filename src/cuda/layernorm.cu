// LayerNorm: y = (x - mean) * rstd * gain + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps).
// Forward and backward into x.
//
// Shapes     x, y, dx, dy (T,C) with row strides, gain, bias (C) frozen, mean, rstd (T) F32
// Plan       one block per row, as for the long rows of norm.cu. Forward sweeps a row three times,
//            as sum(x^2) - C mean^2 would cancel where the mean is large; all but the first sweep
//            find the row in L1/L2.
// Bytes      forward: x once, y once. backward: x, dy once, dx once (read too when adding).
// Numbers    sums in F32, in a fixed order (reduce.cuh)
// Limits     below C = 512 a block is mostly idle
#include "cuda/cuda_backend.h"
#include "cuda/norm.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

template <int N, class T>
__global__ void __launch_bounds__(512)
    layernorm_forward_kernel(Matrix<T> y, float* mean, float* rstd, Matrix<const T> x,
                             const T* gain, const T* bias, int cols, float eps) {
  wait_for_previous();  // Note [Early launches]
  i64 row = blockIdx.x;
  float sum = 0.0f, squares = 0.0f;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += v[i];
  }
  float m = block_sum(sum) / static_cast<float>(cols);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) squares = fmaf(v[i] - m, v[i] - m, squares);
  }
  float r = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(cols) + eps);
  if (threadIdx.x == 0) mean[row] = m, rstd[row] = r;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], w[N], b[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(gain + col, w);
    load_pack<N>(bias + col, b);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf((v[i] - m) * r, w[i], b[i]);
    store_pack<N>(y.at(row, col), v);
  }
}

// With g = dy * gain, xhat = (x - mean) * rstd:  dx (+)= rstd * (g - mean(g) - xhat mean(g xhat))
template <int N, class T>
__global__ void __launch_bounds__(512)
    layernorm_backward_kernel(Matrix<T> dx, Matrix<const T> dy, Matrix<const T> x, const T* gain,
                              const float* mean, const float* rstd, int cols, bool accumulate) {
  i64 row = blockIdx.x;
  float m = mean[row], r = rstd[row], sum = 0.0f, dot = 0.0f;
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], g[N], w[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(dy.at(row, col), g);
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum = fmaf(g[i], w[i], sum);
      dot = fmaf(g[i] * w[i], (v[i] - m) * r, dot);
    }
  }
  float mean_g = block_sum(sum) / static_cast<float>(cols);
  float mean_dot = block_sum(dot) / static_cast<float>(cols);
  for (int col = threadIdx.x * N; col < cols; col += blockDim.x * N) {
    float v[N], g[N], w[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(dy.at(row, col), g);
    load_pack<N>(gain + col, w);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = r * (g[i] * w[i] - mean_g - (v[i] - m) * r * mean_dot);
    write_pack<N>(dx.at(row, col), v, accumulate);
  }
}

}  // namespace

void CudaBackend::layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                                    const Tensor& x, const Weight& gain, const Weight& bias,
                                    double eps) {
  check(x.cols() <= INT32_MAX, "cuda layernorm: row too long");
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_early("layernorm_forward", layernorm_forward_kernel<N, device_t<T>>, grid_of(x.rows()),
                   dim3(norm_threads(x.cols(), N)), 0, stream(), matrix<T>(y), mean.data<float>(),
                   rstd.data<float>(), const_matrix<T>(x), pointer<T>(gain.values()),
                   pointer<T>(bias.values()), x.cols(), eps);
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, x.cols(), x, y, gain.values(), bias.values()) ? go.template operator()<kN>()
                                                               : go.template operator()<1>();
  });
}

void CudaBackend::layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                     const Tensor& x, const Weight& gain, const Tensor& mean,
                                     const Tensor& rstd) {
  check(x.cols() <= INT32_MAX, "cuda layernorm: row too long");
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch("layernorm_backward", layernorm_backward_kernel<N, device_t<T>>, grid_of(x.rows()),
             dim3(norm_threads(x.cols(), N)), 0, stream(), matrix<T>(dx), const_matrix<T>(dy),
             const_matrix<T>(x), pointer<T>(gain.values()), mean.data<float>(), rstd.data<float>(),
             x.cols(), mode == GradMode::Add);
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, x.cols(), x, dx, dy, gain.values()) ? go.template operator()<kN>()
                                                     : go.template operator()<1>();
  });
}

}  // namespace lk
