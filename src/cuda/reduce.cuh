// Reductions in a fixed order: the same inputs give the same bits, whatever else the GPU is doing.
#pragma once

#include <cuda_runtime.h>

namespace lk {

struct SumOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
  static __device__ __forceinline__ float identity() { return 0.0f; }
};

// Reduces over the 32 lanes of a warp; every lane gets the result (a butterfly: both partners add
// the same two numbers, and addition commutes).
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T x, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    T other;
    if constexpr (sizeof(T) == sizeof(float)) {
      other = __shfl_xor_sync(0xffffffffu, x, offset);
    } else {  // a struct of floats
      constexpr int kWords = sizeof(T) / sizeof(float);
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        reinterpret_cast<float*>(&other)[i] =
            __shfl_xor_sync(0xffffffffu, reinterpret_cast<const float*>(&x)[i], offset);
    }
    x = op(x, other);
  }
  return x;
}

// Reduces over a one-dimensional block of whole warps (at most 32); every thread gets the result.
// May be called again at once.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T x, Op op) {
  __shared__ T partial[32];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  x = warp_reduce(x, op);
  __syncthreads();  // readers of the previous call are done
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return warp_reduce(lane < n_warps ? partial[lane] : Op::identity(), op);
}

__device__ __forceinline__ float warp_sum(float x) { return warp_reduce(x, SumOp{}); }
__device__ __forceinline__ float block_sum(float x) { return block_reduce(x, SumOp{}); }

}  // namespace lk
