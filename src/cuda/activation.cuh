// Activations of the form x * sigmoid(z(x)): SiLU, GELU's tanh form and ReLU, as in
// cpu/activation.h.
// With s = sigmoid(z(x)), the derivative is s (1 + x z'(x) (1 - s)).
#pragma once

#include <cuda_runtime.h>

namespace lk {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// For results that are rounded to BF16. Its relative error is up to 2 + 1.2 |x| units of F32's last
// place; the exact functions would cost more than everything else that a gated unit computes.
__device__ __forceinline__ float fast_sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

// sigmoid() for results that are rounded to T.
template <class T>
__device__ __forceinline__ float sigmoid_for(float x) {
  if constexpr (sizeof(T) == 2) return fast_sigmoid(x);
  return sigmoid(x);
}

struct Silu {
  static __device__ __forceinline__ float z(float x) { return x; }
  static __device__ __forceinline__ float dz(float) { return 1.0f; }
};

// z = 2 sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh(u)) / 2 = sigmoid(2u)
struct GeluTanh {
  static constexpr float kTwice = 1.5957691216057308f, kCubic = 0.044715f;
  static __device__ __forceinline__ float z(float x) {
    return kTwice * x * (1.0f + kCubic * x * x);
  }
  static __device__ __forceinline__ float dz(float x) {
    return kTwice * (1.0f + 3.0f * kCubic * x * x);
  }
};

// sigmoid(+-infinity) is 1 or 0, exactly: max(x, 0) is x times a step.
struct Relu {
  static __device__ __forceinline__ float z(float x) { return x > 0.0f ? INFINITY : -INFINITY; }
  static __device__ __forceinline__ float dz(float) { return 0.0f; }
};

}  // namespace lk
