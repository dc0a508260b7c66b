// ggml's blocks as tensor-core operands, for linear_row.cuh, which says what a format has. Layouts are
// described in io/ggml_blocks.cpp; block_decoders.cuh makes numbers of the same blocks.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/operands.cuh"
#include "tensor/quantised.h"

namespace lk::operands {

// What most types share.
struct Blocks {
  static constexpr bool kSixteens = false, kHalves = true, kInterleaved = false, kLut = false,
                        kSums = true;
  static constexpr int kWords = 1, kPlanes = 1;
  struct Ahead {};  // a block holds its scales
  __device__ __forceinline__ Ahead ahead(u32, u32, int, int) const { return {}; }
};
template <class Format>
struct OfBlocks : Format {
  static OfBlocks of(const QuantisedMatrix& q, i64) {
    check(256 / q.format.blocks->block_values * q.format.blocks->block_bytes == Format::kBytes,
          "cuda: blocks of ", q.format.blocks->name);
    OfBlocks format{};
    if constexpr (Format::kLut)
      std::copy_n(q.format.blocks->id == 39 ? kMxfp4Values : kIq4Values, 16, format.table);
    return format;
  }
};

// 32 values in nibbles: bytes 0-15 hold elements j (low) and j + 16 (high).
template <int kBlock, int kQuanta, bool kMinimum, bool kFifth, int kOffset>
struct Legacy : Blocks {
  static constexpr u32 kBytes = 8 * kBlock;
  static constexpr int kBias = kPut + kOffset, kAlign = kBlock % 4 == 0 ? 4 : 2;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[1][4]) {
    p += run * kBlock + kQuanta;
    const u32 codes = read4<kAlign>(p + 4 * t);
    u32 low = codes & 0x0f0f0f0fu, high = codes >> 4 & 0x0f0f0f0fu;
    if constexpr (kFifth) {
      const u32 fifth = read4<kAlign>(p - 4) >> 4 * t;
      low |= spread(fifth, 4), high |= spread(fifth >> 16, 4);
    }
    put(low, w[0][0], w[0][1]);
    put(high, w[0][2], w[0][3]);
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
    p += 2 * t * kBlock;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      f[i][0] = {read_half(p + i * kBlock), kMinimum ? read_half(p + i * kBlock + 2) : 0.0f};
  }
};
using Q4_0 = Legacy<18, 2, false, false, 8>;
using Q4_1 = Legacy<20, 4, true, false, 0>;
using Q5_0 = Legacy<22, 6, false, true, 16>;
using Q5_1 = Legacy<24, 8, true, true, 0>;

// Bytes take two operands: 16 times the high nibble, and the low one.
struct Q8_0 : Blocks {
  static constexpr u32 kBytes = 8 * 34;
  static constexpr int kPlanes = 2, kBias = kPut + kPutHigh + 128;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[2][4]) {
    p += run * 34 + 2 + 4 * t;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 codes = read4<2>(p + 16 * half) ^ 0x80808080u;  // q + 128
      put(codes & 0x0f0f0f0fu, w[0][2 * half], w[0][2 * half + 1]);
      put<0x45>(codes >> 4 & 0x0f0f0f0fu, w[1][2 * half], w[1][2 * half + 1]);
    }
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
    f[0][0] = {read_half(p + 2 * t * 34), 0.0f}, f[1][0] = {read_half(p + 2 * t * 34 + 34), 0.0f};
  }
};

// Two bits, groups of 16.
struct Q2_K : Blocks {
  static constexpr u32 kBytes = 84;
  static constexpr bool kSixteens = true;
  static constexpr int kBias = kPut;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[1][4]) {
    p += 16 + run / 4 * 32 + 4 * t;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      put(read4<4>(p + 16 * half) >> run % 4 * 2 & 0x03030303u, w[0][2 * half], w[0][2 * half + 1]);
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][2]) const {
    const u32 s = read4<4>(p + 4 * t);
    const float d = read_half(p + 80), dmin = -read_half(p + 82);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      f[j / 2][j % 2] = {d * byte_of(s & 0x0f0f0f0fu, j), dmin * byte_of(s >> 4 & 0x0f0f0f0fu, j)};
  }
};

struct Q3_K : Blocks {
  static constexpr u32 kBytes = 110;
  static constexpr bool kSixteens = true;
  static constexpr int kBias = kPut + 4;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[1][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 low = read4<2>(p + 32 + run / 4 * 32 + 16 * half + 4 * t) >> run % 4 * 2,
                third = read4<2>(p + 16 * half + 4 * t) >> run;
      put((low & 0x03030303u) | (third & 0x01010101u) << 2, w[0][2 * half], w[0][2 * half + 1]);
    }
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][2]) const {
    const u32 low = read4<2>(p + 96 + t % 2 * 4) >> t / 2 * 4, high = read4<2>(p + 104) >> 2 * t;
    const u32 s = (low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
    const float d = read_half(p + 108);
#pragma unroll
    for (int j = 0; j < 4; ++j) f[j / 2][j % 2] = {d * (byte_of(s, j) - 32.0f), 0.0f};
  }
};

// Four bits, or five with kFifth; groups of 32 with a scale and a minimum of six bits each.
template <bool kFifth>
struct Q45_K : Blocks {
  static constexpr u32 kBytes = kFifth ? 176 : 144;
  static constexpr bool kHalves = false;
  static constexpr int kWords = 2, kBias = kPut;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[1][4]) {
    const uint2 codes = read<uint2>(p + (kFifth ? 48 : 16) + run / 2 * 32 + 8 * t);
    u32 low = codes.x >> run % 2 * 4 & 0x0f0f0f0fu, high = codes.y >> run % 2 * 4 & 0x0f0f0f0fu;
    if constexpr (kFifth) {
      const uint2 fifth = read<uint2>(p + 16 + 8 * t);
      low |= (fifth.x >> run & 0x01010101u) << 4, high |= (fifth.y >> run & 0x01010101u) << 4;
    }
    put(low, w[0][0], w[0][1]);
    put(high, w[0][2], w[0][3]);
  }
  // Those of k_scale() in tensor/ggml_type.h, two runs at a time.
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
    const uint4 head = read<uint4>(p);
    const u32 s4 = (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u),
              m4 = (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u);
    const u32 s = (t < 2 ? head.y & 0x3f3f3f3fu : s4) >> t % 2 * 16,
              m = (t < 2 ? head.z & 0x3f3f3f3fu : m4) >> t % 2 * 16;
    const float d = __half2float(__ushort_as_half(static_cast<unsigned short>(head.x))),
                dmin = -__half2float(__ushort_as_half(static_cast<unsigned short>(head.x >> 16)));
#pragma unroll
    for (int i = 0; i < 2; ++i) f[i][0] = {d * byte_of(s, i), dmin * byte_of(m, i)};
  }
};

struct Q6_K : Blocks {
  static constexpr u32 kBytes = 210;
  static constexpr bool kSixteens = true;
  static constexpr int kBias = kPut + 32;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8*, u32,
                                                  u32 (&w)[1][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = 16 * half + 4 * t;
      const u32 low = read4<2>(p + run / 4 * 64 + run % 2 * 32 + at) >> run % 4 / 2 * 4,
                high = read4<2>(p + 128 + run / 4 * 32 + at) >> run % 4 * 2;
      put((low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4, w[0][2 * half], w[0][2 * half + 1]);
    }
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][2]) const {
    const u32 s = read4<2>(p + 192 + 4 * t) ^ 0x80808080u;  // s + 128
    const float d = read_half(p + 208);
#pragma unroll
    for (int j = 0; j < 4; ++j) f[j / 2][j % 2] = {d * (byte_of(s, j) - 128.0f), 0.0f};
  }
};

// Nibbles that choose one of 16 values: elements j (low) and j + 16 of a byte.
struct Chosen : Blocks {
  static constexpr bool kInterleaved = true, kLut = true, kSums = false;
  static constexpr int kBias = 0;
  float table[16];
  __device__ __forceinline__ u32 pair_of(int byte) const {
    return pack_bf16(table[byte & 15], table[byte >> 4]);
  }
};

struct Iq4Nl : Chosen {
  static constexpr u32 kBytes = 8 * 18;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8* lut,
                                                  u32 bank, u32 (&w)[1][4]) {
    look_up(lut, bank, read4<2>(p + run * 18 + 2 + 4 * t), w[0]);
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
    f[0][0] = {read_half(p + 2 * t * 18), 0.0f}, f[1][0] = {read_half(p + 2 * t * 18 + 18), 0.0f};
  }
};

struct Iq4Xs : Chosen {
  static constexpr u32 kBytes = 136;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8* lut,
                                                  u32 bank, u32 (&w)[1][4]) {
    look_up(lut, bank, read4<4>(p + 8 + run * 16 + 4 * t), w[0]);
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
    const u32 low = p[4 + t], high = read<unsigned short>(p + 2) >> 4 * t;
    const float d = read_half(p);
    f[0][0] = {d * (byte_of((low & 15u) | (high & 3u) << 4, 0) - 32.0f), 0.0f};
    f[1][0] = {d * (byte_of(low >> 4 | (high & 12u) << 2, 0) - 32.0f), 0.0f};
  }
};

// The scale is a power of two, 2^(e - 128); the table holds doubled values.
struct Mxfp4 : Chosen {
  static constexpr u32 kBytes = 8 * 17;
  static __device__ __forceinline__ void operands(const u8* p, int run, int t, const u8* lut,
                                                  u32 bank, u32 (&w)[1][4]) {
    look_up(lut, bank, read4<1>(p + run * 17 + 1 + 4 * t), w[0]);
  }
  __device__ __forceinline__ void scales(const u8* p, Ahead, int, int t, float2 (&f)[2][1]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 e = p[(2 * t + i) * 17];
      f[i][0] = {__uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0.0f};
    }
  }
};

// Calls use.operator()<Format>() with the format of blocks of `type`.
template <class Use>
bool with_blocks(const GgmlType& type, const Use& use) {
  switch (type.id) {
    case 2:
      return use.template operator()<OfBlocks<Q4_0>>();
    case 3:
      return use.template operator()<OfBlocks<Q4_1>>();
    case 6:
      return use.template operator()<OfBlocks<Q5_0>>();
    case 7:
      return use.template operator()<OfBlocks<Q5_1>>();
    case 8:
      return use.template operator()<OfBlocks<Q8_0>>();
    case 10:
      return use.template operator()<OfBlocks<Q2_K>>();
    case 11:
      return use.template operator()<OfBlocks<Q3_K>>();
    case 12:
      return use.template operator()<OfBlocks<Q45_K<false>>>();
    case 13:
      return use.template operator()<OfBlocks<Q45_K<true>>>();
    case 14:
      return use.template operator()<OfBlocks<Q6_K>>();
    case 20:
      return use.template operator()<OfBlocks<Iq4Nl>>();
    case 23:
      return use.template operator()<OfBlocks<Iq4Xs>>();
    case 39:
      return use.template operator()<OfBlocks<Mxfp4>>();
    default:
      return false;
  }
}

}  // namespace lk::operands
