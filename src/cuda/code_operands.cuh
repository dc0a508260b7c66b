// Codes with scales beside them as tensor-core operands, for linear_row.cuh, which says what a format has:
// NF4, FP4, FP8 and 4-bit integers by groups. code_decoders.cuh makes numbers of the same codes.
#pragma once

#include "cuda/code_decoders.cuh"
#include "cuda/mma.cuh"
#include "cuda/operands.cuh"

namespace lk::operands {

struct Codes {
  static constexpr bool kInterleaved = false, kLut = false, kSums = false;
  static constexpr int kWords = 1, kBias = 0;
};

// A number for each run and row, and nothing else.
struct Scaled : Codes {
  struct Ahead {
    float scale[2][2];
  };
  static __device__ __forceinline__ void scales(const Ahead& a, int h, float2 (&f)[2]) {
    f[0] = {a.scale[h][0], 0.0f}, f[1] = {a.scale[h][1], 0.0f};
  }
};

// Nf4 and Fp4; the even column in a byte's high nibble. Blocks are whole runs.
template <bool kNested>
struct Codebook : Scaled {
  static constexpr u32 kBytes = 128;
  static constexpr bool kLut = true;
  float table[16];
  const void* stored;  // scales
  const float *outer, *map;
  float offset;
  int block_shift;  // a block is so many runs: a power of two

  static Codebook of(const QuantisedMatrix& q, i64) {
    Codebook format{{},
                    {},
                    q.plane<void>(Plane::Scales),
                    q.plane<float>(Plane::Outer),
                    q.plane<float>(Plane::Map),
                    q.offset,
                    0};
    while ((i64{32} << format.block_shift) < q.format.block) ++format.block_shift;
    std::copy_n(codebook(q.format.encoding).begin(), 16, format.table);
    return format;
  }
  __device__ __forceinline__ u32 pair_of(int byte) const {
    return pack_bf16(table[byte >> 4], table[byte & 15]);
  }

  __device__ __forceinline__ float scale_of(u32 block) const {
    if constexpr (kNested) {
      const float inner = __ldg(map + __ldg(static_cast<const u8*>(stored) + block));
      return __fadd_rn(__fmul_rn(inner, __ldg(outer + block / kNestedBlock)), offset);
    }
    return __ldg(static_cast<const float*>(stored) + block);
  }
  __device__ __forceinline__ Ahead ahead(u32 low_row, u32 high_row, int run, int runs) const {
    Ahead a;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u32 first = (h ? high_row : low_row) * static_cast<u32>(runs);
      const u32 block = (first + static_cast<u32>(run)) >> block_shift,
                other = (first + static_cast<u32>(min(run + 1, runs - 1))) >> block_shift;
      a.scale[h][0] = a.scale[h][1] = scale_of(block);
      if (other != block) a.scale[h][1] = scale_of(other);
    }
    return a;
  }
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8* lut,
                                                  u32 bank, u32 (&w)[4]) {
    look_up(lut, bank, read<u32>(p + run * 16 + 4 * t), w);
  }
};

// E4M3: sign, exponent and mantissa moved to where BF16 has them, and 2^120 for the other bias.
struct Fp8 : Scaled {
  static constexpr u32 kBytes = 256;
  static constexpr int kWords = 2;
  const float* stored;  // scales
  codes::Divisor scale_rows, block;
  u32 grid;

  static Fp8 of(const QuantisedMatrix& q, i64 cols) {
    return {{},
            q.plane<float>(Plane::Scales),
            codes::Divisor::of(q.format.scale_rows, q[Plane::Scales].rows() * q.format.scale_rows),
            codes::Divisor::of(q.format.block, cols),
            static_cast<u32>(ceil_div(cols, q.format.block))};
  }

  __device__ __forceinline__ Ahead ahead(u32 low_row, u32 high_row, int run, int runs) const {
    Ahead a;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        a.scale[h][i] = __ldg(stored + scale_rows.shifted(h ? high_row : low_row) * grid +
                              block.shifted(static_cast<u32>(min(run + i, runs - 1)) * 32u));
    return a;
  }
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[4]) {
    const uint2 codes = read<uint2>(p + run * 32 + 8 * t);
    w[0] = pair_of(codes.x, 0x1404), w[1] = pair_of(codes.x, 0x3424);
    w[2] = pair_of(codes.y, 0x1404), w[3] = pair_of(codes.y, 0x3424);
  }

 private:
  // The two bytes that `bytes` moves to the upper half of each of the two numbers.
  static __device__ __forceinline__ u32 pair_of(u32 codes, u32 bytes) {
    const u32 upper = __byte_perm(codes, 0u, bytes);
    const u32 small = and_or(upper, 0x80008000u, upper >> 4 & 0x07f007f0u);
    constexpr u32 kBig = 0x7b807b80u, kMinusZero = 0x80008000u;  // 2^120
    u32 w;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(w) : "r"(small), "r"(kBig), "r"(kMinusZero));
    return w;
  }
};

// Groups are whole runs, or all columns; the even column in the low nibble.
struct Int4 : Codes {
  static constexpr u32 kBytes = 128;
  static constexpr bool kInterleaved = true, kSums = true;
  static constexpr int kBias = 128;  // codes are the mantissa of a BF16 of 128 = 2^7
  const u8* zeros;
  const float* stored;  // scales
  codes::Divisor block;
  u32 groups;

  static Int4 of(const QuantisedMatrix& q, i64 cols) {
    return {{},
            q.plane<u8>(Plane::Zeros),
            q.plane<float>(Plane::Scales),
            codes::Divisor::of(q.format.block, cols),
            static_cast<u32>(ceil_div(cols, q.format.block))};
  }

  struct Ahead {
    float scale[2][2], zero[2][2];
  };
  __device__ __forceinline__ Ahead ahead(u32 low_row, u32 high_row, int run, int runs) const {
    Ahead a;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const u32 at = (h ? high_row : low_row) * groups +
                       block.shifted(static_cast<u32>(min(run + i, runs - 1)) * 32u);
        a.scale[h][i] = __ldg(stored + at), a.zero[h][i] = static_cast<float>(__ldg(zeros + at));
      }
    return a;
  }
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[4]) {
    const u32 codes = read<u32>(p + run * 16 + 4 * t);
#pragma unroll
    for (int j = 0; j < 4; ++j) w[j] = and_or(codes >> 4 * j, 0x000f000fu, 0x43004300u);
  }
  static __device__ __forceinline__ void scales(const Ahead& a, int h, float2 (&f)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) f[i] = {a.scale[h][i], -a.scale[h][i] * a.zero[h][i]};
  }
};

// Calls use.operator()<Format>() with the format that reads a matrix in f; false if none does.
template <class Use>
bool with_codes(const QuantisedFormat& f, i64 rows, i64 cols, const Use& use) {
  const auto power = [](i64 x) { return (x & (x - 1)) == 0; };
  const bool whole = f.block >= cols || (f.block % 32 == 0 && power(f.block));
  switch (f.encoding) {
    case Encoding::Nf4:
    case Encoding::Fp4:
      if (f.block % 32 != 0 || !power(f.block)) return false;
      return f.nested ? use.template operator()<Codebook<true>>()
                      : use.template operator()<Codebook<false>>();
    case Encoding::Fp8:
      return whole && (f.scale_rows >= rows || power(f.scale_rows)) &&
             use.template operator()<Fp8>();
    case Encoding::Int4:
      return whole && use.template operator()<Int4>();
    case Encoding::Blocks:
      break;
  }
  return false;
}

}  // namespace lk::operands
