// The arithmetic of gated units, shared by all kernels that need it.
#pragma once

#include "cuda/activation.cuh"

namespace lk {

// act(gate) * up, to be rounded to T.
template <class T, class Act>
__device__ __forceinline__ float gated(float gate, float up) {
  return up * (gate * sigmoid_for<T>(Act::z(gate)));
}

// d holds dy, g gate and u up; they are replaced by y = act(gate) * up, dgate and dup.
template <class Act, bool FAST = false, int N>
__device__ __forceinline__ void glu_gradients(float (&d)[N], float (&g)[N], float (&u)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float s = FAST ? fast_sigmoid(Act::z(g[i])) : sigmoid(Act::z(g[i]));
    float act = g[i] * s, dg = d[i] * u[i] * s * (1.0f + g[i] * Act::dz(g[i]) * (1.0f - s));
    float du = d[i] * act;
    d[i] = act * u[i];
    u[i] = du;
    g[i] = dg;
  }
}

template <bool FAST = false, int N>
__device__ __forceinline__ void swiglu_gradients(float (&d)[N], float (&g)[N], float (&u)[N]) {
  glu_gradients<Silu, FAST>(d, g, u);
}

}  // namespace lk
