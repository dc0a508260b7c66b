// SwiGLU's arithmetic, for every kernel that does it.
#pragma once

namespace lk {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// d holds dy, g gate and u up; they become y = silu(gate) * up, dgate and dup.
template <int N>
__device__ __forceinline__ void swiglu_gradients(float (&d)[N], float (&g)[N], float (&u)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float s = sigmoid(g[i]);
    float silu = g[i] * s, dg = d[i] * u[i] * s * (1.0f + g[i] * (1.0f - s));
    float du = d[i] * silu;
    d[i] = silu * u[i];
    u[i] = du;
    g[i] = dg;
  }
}

}  // namespace lk
