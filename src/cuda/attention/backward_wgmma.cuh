// What the backward kernels of Hopper's tensor cores share.
#pragma once

#include "cuda/attention/tiles.cuh"
#include "cuda/wgmma.cuh"

namespace lk {

inline constexpr float kLog2e = 1.4426950408889634f;

struct Statistics {
  const float *lse, *delta;  // (H, T)
};

// The angles by which q and k were rotated; without a table they were not.
struct Angles {
  Matrix<const float> table;  // (P, D): cos | sin
  const int* positions;

  // Rotates a row's pairs (a[i], b[i]) back, i = 0 and 1: its columns first + i and first + i + HALF.
  template <int HALF>
  __device__ __forceinline__ void turn_back(float* a, float* b, i64 row, int first) const {
    const float* at = table.at(positions[row], first);
    float2 cosine = *reinterpret_cast<const float2*>(at);
    float2 sine = *reinterpret_cast<const float2*>(at + HALF);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float cs = i ? cosine.y : cosine.x, sn = i ? sine.y : sine.x;
      float turned = a[i] * cs + b[i] * sn;
      b[i] = b[i] * cs - a[i] * sn;
      a[i] = turned;
    }
  }
};

inline Angles angles_of(const Rotation* rotation) {
  if (!rotation) return {};
  return {const_matrix<float>(rotation->table), rotation->positions.data<std::int32_t>()};
}

}  // namespace lk
