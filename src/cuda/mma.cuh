// Tensor-core building blocks for BF16: copies into swizzled shared memory, fragments, products.
//
// Fragments of mma.m16n8k16 (PTX ISA, its section of that name); g = lane / 4, t = lane % 4:
//   A 16 x 16  a0 (g, 2t..2t+1)  a1 (g+8, 2t..)  a2 (g, 2t+8..)  a3 (g+8, 2t+8..)
//   B 16 x 8   b0 (k = 2t..2t+1, n = g)          b1 (k = 2t+8.., n = g)
//   C 16 x 8   c0, c1 (g, 2t..2t+1)              c2, c3 (g+8, 2t..2t+1)
// Two C tiles side by side, rounded and packed, are an A fragment: that is how probabilities go
// straight from one product into the next without leaving registers.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace lk {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 (or 4) bytes in the background; zeros are written instead if not `valid`.
__device__ __forceinline__ void copy_async_16(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_8(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_async_4(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group 0;\n" ::: "memory");
}
// Waits until at most `LEFT` of this thread's newest groups of copies are still in flight.
template <int LEFT>
__device__ __forceinline__ void copy_async_wait_but() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
}

// A tile of COLS bf16 columns in shared memory, at a multiple of its row's bytes. A row is COLS / 8
// chunks of 16 bytes. Chunk c of row r is stored at chunk c ^ (r % 8), so that the eight rows of an
// 8 x 8 block lie in different banks.
template <int COLS>
struct SwizzledTile {
  static constexpr int kChunks = COLS / 8, kRowBytes = COLS * 2;
  static_assert(kChunks >= 8, "the swizzle permutes eight chunks");
  std::uint32_t base;

  __device__ __forceinline__ std::uint32_t at(int row, int chunk) const {
    return base + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
  }
  // at(row + lane_row, 2 * step + lane_chunk) for a row that is a multiple of 8 and a lane_chunk of
  // 0 or 1, split so that only the first part depends on the lane: one exclusive-or per step, with
  // rows as immediates.
  __device__ __forceinline__ std::uint32_t at(int row, int step, int lane_row,
                                              int lane_chunk) const {
    return (at(lane_row, lane_chunk) ^ (step << 5)) + row * kRowBytes;
  }
  // Hides the address from the compiler, so that it does not compute all of a loop's addresses
  // ahead of the loop and run out of registers.
  __device__ __forceinline__ void pin() { asm volatile("" : "+r"(base)); }

  // Starts copying rows [0, valid_rows) x columns [0, valid_cols) (a multiple of 8) of a matrix;
  // the rest of the ROWS x COLS tile is zeroed.
  template <int ROWS, int THREADS>
  __device__ __forceinline__ void load_async(const __nv_bfloat16* from, i64 ld, int valid_rows,
                                             int valid_cols) const {
    constexpr int kPass = THREADS / kChunks;  // rows that the block copies at a time
    static_assert(kPass % 4 == 0 && ROWS % kPass == 0);
    constexpr std::uint32_t kFlip = kPass % 8 / 4 * 64;  // chunks move where row % 8 changes by 4
    int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    if (chunk * 8 >= valid_cols) valid_rows = 0;
    std::uint32_t to = at(row, chunk);
    const __nv_bfloat16* source = from + row * ld + chunk * 8;
#pragma unroll
    for (int n = 0; n < ROWS / kPass; ++n) {
      bool valid = row + n * kPass < valid_rows;
      copy_async_16((to + n * kPass * kRowBytes) ^ (n % 2 * kFlip), valid ? source : from, valid);
      source += kPass * ld;
    }
  }
};

struct Fragment4 {
  std::uint32_t r[4];
};

// Loads four 8 x 8 blocks; lane l names row l % 8 of block l / 8.
__device__ __forceinline__ Fragment4 load_matrix_x4(std::uint32_t address) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address)
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment4 load_matrix_x4_transposed(std::uint32_t address) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address)
               : "memory");
  return f;
}

// Loads two 8 x 8 blocks, transposed; lane l < 16 names row l % 8 of block l / 8.
__device__ __forceinline__ void load_matrix_x2_transposed(std::uint32_t address, std::uint32_t& r0,
                                                          std::uint32_t& r1) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r0), "=r"(r1)
               : "r"(address)
               : "memory");
}

// The A fragment at rows [row, row + 16), columns [16 step, 16 step + 16) of a row-major tile.
template <int COLS>
__device__ __forceinline__ Fragment4 fragment_a(SwizzledTile<COLS> tile, int row, int step) {
  int lane = threadIdx.x % 32;
  return load_matrix_x4(tile.at(row, step, lane % 16, lane / 16));
}
// Two B fragments (r[0..1] for n in [n, n + 8), r[2..3] for the next eight) of B = tileᵀ: the tile
// is stored (n, k), k contiguous; k in [16 step, 16 step + 16).
template <int COLS>
__device__ __forceinline__ Fragment4 fragment_b_of_transpose(SwizzledTile<COLS> tile, int n,
                                                             int step) {
  int lane = threadIdx.x % 32;
  return load_matrix_x4(tile.at(n, step, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}
// Two B fragments of B = tile, stored (k, n), n contiguous: k in [k, k + 16), n in [16 step, 16
// step + 16).
template <int COLS>
__device__ __forceinline__ Fragment4 fragment_b(SwizzledTile<COLS> tile, int k, int step) {
  int lane = threadIdx.x % 32;
  return load_matrix_x4_transposed(tile.at(k, step, lane % 16, lane / 16));
}

// c += a b, F32 accumulation.
__device__ __forceinline__ void mma(float (&c)[4], const Fragment4& a, std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

// The same with bytes, signed ones in b, exactly: 32 columns of a, or 16 (a0: rows of the lane's group, a1: eight
// further).
template <bool SIGNED>
__device__ __forceinline__ void mma_bytes(int (&c)[4], const Fragment4& a, std::uint32_t b0,
                                          std::uint32_t b1) {
  if constexpr (SIGNED)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}
template <bool SIGNED>
__device__ __forceinline__ void mma_bytes(int (&c)[4], std::uint32_t a0, std::uint32_t a1,
                                          std::uint32_t b) {
  if constexpr (SIGNED)
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

// Rounds two floats to bf16; `low` goes to the lower half, as fragments want it.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<std::uint32_t*>(&pair);
}
// Two neighbouring C tiles as one A fragment.
__device__ __forceinline__ Fragment4 pack_a(const float (&left)[4], const float (&right)[4]) {
  return {{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]),
           pack_bf16(right[2], right[3])}};
}

// c (16, 8 NT) += a bᵀ: a is rows [a_row, a_row + 16) of a tile, b rows [0, 8 NT) of a tile, both
// (., COLS).
template <int NT, int COLS>
__device__ __forceinline__ void multiply_abt(float (&c)[NT][4], SwizzledTile<COLS> a, int a_row,
                                             SwizzledTile<COLS> b) {
#pragma unroll
  for (int step = 0; step < COLS / 16; ++step) {
    Fragment4 fa = fragment_a(a, a_row, step);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      Fragment4 fb = fragment_b_of_transpose(b, 8 * n, step);
      mma(c[n], fa, fb.r[0], fb.r[1]);
      mma(c[n + 1], fa, fb.r[2], fb.r[3]);
    }
  }
}

// c (16, COLS) += p b: p (16, 8 NT) is in C-tile registers (rounded to bf16 here), b is rows [0, 8
// NT) of a tile.
template <int NT, int COLS>
__device__ __forceinline__ void multiply_pb(float (&c)[COLS / 8][4], const float (&p)[NT][4],
                                            SwizzledTile<COLS> b) {
#pragma unroll
  for (int k = 0; k < NT; k += 2) {
    Fragment4 fa = pack_a(p[k], p[k + 1]);
#pragma unroll
    for (int step = 0; step < COLS / 16; ++step) {
      Fragment4 fb = fragment_b(b, 8 * k, step);
      mma(c[2 * step], fa, fb.r[0], fb.r[1]);
      mma(c[2 * step + 1], fa, fb.r[2], fb.r[3]);
    }
  }
}

// 2^x by the special-function unit: 2 ulp, flushes denormals.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Reduces over the four lanes that hold one row of a C tile.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace lk
