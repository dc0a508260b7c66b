// What the backward kernels of Hopper's tensor cores share.
//
// Note [Shares of a walk]. A block owns some keys and walks over tiles of queries. Where the keys are
// few, most multiprocessors would idle: gemma3-1b has one key/value head. Then the blocks of a
// cluster own the same keys; block r of n takes the tiles r, r + n, ... of the walk, and their sums
// are added up in the order of r, through distributed shared memory.
#pragma once

#include "cuda/attention/tiles.cuh"
#include "cuda/cluster.cuh"
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

// How many blocks share each walk, where there are `blocks` walks over tiles of `rows` queries:
// enough that each multiprocessor of a Hopper GPU gets two blocks or `resident` at a time, if a
// block keeps eight tiles or more. It depends on the shape alone: two runs give the same bits.
inline unsigned shares_of_walk(const AttentionBackward& a, i64 blocks, int rows, int resident) {
  constexpr unsigned kMost = 8;                                   // in a portable cluster
  i64 length = a.seg.total() / a.seg.count(), seen = length / 2;  // by a key, on average
  if (a.shape.window > 0) seen = std::min<i64>(seen, a.shape.window);
  i64 tiles = a.shape.n_heads / a.shape.n_kv_heads * ceil_div(seen, rows);
  unsigned shares = 1;
  while (shares < kMost && blocks * shares < 256 * resident && tiles >= 16 * shares) shares *= 2;
  return shares;
}

// Stores a warp's 16 x head_dim sums as rows [0, n_rows) of a matrix; `row0` is the row of the first of
// all warps' sums, `warp` the warp's place among them. With angles, each pair (i, i + D/2), which one
// thread holds, is rotated back first.
template <int D>
__device__ __forceinline__ void store_rows(float (&c)[D / 8][4], Matrix<__nv_bfloat16> m, int warp,
                                           i64 row0, i64 col0, int n_rows, int head_dim,
                                           float factor, const Angles& angles = {}) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = warp * 16 + g + 8 * half;
    if (row >= n_rows) continue;
    __nv_bfloat16* to = m.at(row0 + row, col0 + 2 * t);
    if (angles.table.data) {
#pragma unroll
      for (int dt = 0; dt < D / 16; ++dt)
        angles.turn_back<D / 2>(&c[dt][2 * half], &c[dt + D / 16][2 * half], row0 + row,
                                dt * 8 + 2 * t);
    }
#pragma unroll
    for (int dt = 0; dt < D / 8; ++dt)
      if (dt * 8 < head_dim)
        *reinterpret_cast<std::uint32_t*>(to + dt * 8) =
            pack_bf16(factor * c[dt][2 * half], factor * c[dt][2 * half + 1]);
  }
}

#ifdef LK_DEVICE_HAS_WGMMA
// A place of a walk over the tiles of ROWS queries from `begin` to before `end`, of one head after
// the other.
template <int ROWS>
struct WalkPlace {
  int head, query;
  // Moves on by `tiles`.
  __device__ __forceinline__ void advance(int tiles, int begin, int end) {
    query += tiles * ROWS;
    while (query >= end) query -= (end - begin + ROWS - 1) / ROWS * ROWS, ++head;
  }
};

// A warpgroup's sums (64, D) in shared memory, in the order in which threads hold them: 16 bytes of
// each C tile a thread.
template <int D>
struct SharedSums {
  static constexpr std::uint32_t kTileBytes = kWarpgroup * sizeof(float4),
                                 kBytes = D / 8 * kTileBytes;
  std::uint32_t place;  // this thread's, in the first tile

  __device__ __forceinline__ explicit SharedSums(std::uint32_t base)
      : place(base + threadIdx.x % kWarpgroup * static_cast<unsigned>(sizeof(float4))) {}
  // Nobody may read or copy anything else there any more. Zeros are left if there was nothing to
  // sum.
  __device__ __forceinline__ void leave(const float (&c)[D / 8][4], bool any) const {
#pragma unroll
    for (int dt = 0; dt < D / 8; ++dt)
      store_shared(place + dt * kTileBytes,
                   any ? make_float4(c[dt][0], c[dt][1], c[dt][2], c[dt][3]) : float4{});
  }
  // A C tile added up over the cluster's blocks, in order. A cluster_sync() comes before the first
  // and after the last call.
  __device__ __forceinline__ float4 total(int dt, int blocks) const {
    float4 x = load_shared_of(place + dt * kTileBytes, 0);
    for (int from = 1; from < blocks; ++from) {
      float4 y = load_shared_of(place + dt * kTileBytes, from);
      x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
    }
    return x;
  }
  // Stores this block's part of the columns of the totals: `to` is the warpgroup's first row, row
  // `row0` of all, and the rows [0, n_rows) are stored. With angles, pairs are rotated back first.
  __device__ __forceinline__ void store_totals(__nv_bfloat16* to, i64 ld, i64 row0, int n_rows,
                                               int head_dim, float factor,
                                               const Angles& angles = {}) const {
    int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    int blocks = cluster_size();
#pragma unroll 1
    for (int dt = cluster_rank(); dt < D / 16; dt += blocks) {
      float4 low = total(dt, blocks), high = total(dt + D / 16, blocks);
      int column = dt * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int row = warp * 16 + lane / 4 + 8 * half;
        if (row >= n_rows) continue;
        float a[2] = {half ? low.z : low.x, half ? low.w : low.y};
        float b[2] = {half ? high.z : high.x, half ? high.w : high.y};
        if (angles.table.data) angles.turn_back<D / 2>(a, b, row0 + row, column);
        __nv_bfloat16* at = to + row * ld + column;
        *reinterpret_cast<std::uint32_t*>(at) = pack_bf16(factor * a[0], factor * a[1]);
        if (column + D / 2 < head_dim)
          *reinterpret_cast<std::uint32_t*>(at + D / 2) = pack_bf16(factor * b[0], factor * b[1]);
      }
    }
  }
};
#endif

}  // namespace lk
