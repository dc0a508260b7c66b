// ggml's blocks as bytes for tensor cores, for integer_operands.cuh, which says what a format has. Layouts are
// described in io/ggml_blocks.cpp; block_decoders.cuh makes numbers of the same blocks.
#pragma once

#include "cuda/operands.cuh"
#include "tensor/quantised.h"

namespace lk::operands {

// What most types share.
struct Blocks {
  static constexpr bool kWhole = false, kSixteens = false, kHalves = true, kMixed = false,
                        kSigned = false, kSums = true, kAsksAhead = false;
  static constexpr int kWords = 1, kBias = 0, kWarps = 16, kBlocks = 2;
};
template <class Format>
struct OfBlocks : Format {
  static OfBlocks of(const QuantisedMatrix& q, i64) {
    check(256 / q.format.blocks->block_values * q.format.blocks->block_bytes == Format::kBytes,
          "cuda: blocks of ", q.format.blocks->name);
    return {};
  }
};

// The word at p + at; p is a multiple of 4, `at` of 2 and known to the compiler.
__device__ __forceinline__ u32 word_at(const u8* p, int at) {
  return at % 4 == 0 ? read<u32>(p + at) : read4<2>(p + at);
}

// 32 values in nibbles: bytes 0-15 hold elements j (low) and j + 16 (high).
template <int kBlock, int kQuanta, bool kMinimum, bool kFifth, int kOffset>
struct Legacy : Blocks {
  static constexpr u32 kBytes = 8 * kBlock;
  static constexpr int kBias = kOffset;
  static constexpr bool kSums = kMinimum || kOffset != 0;
  static constexpr int kWarps = kMinimum && kFifth ? 8 : 16, kBlocks = kMinimum && kFifth ? 3 : 2;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    const int at = run * kBlock + kQuanta;
    const u32 codes = word_at(p + 4 * t, at);
    w[0] = codes & 0x0f0f0f0fu, w[1] = codes >> 4 & 0x0f0f0f0fu;
    if constexpr (kFifth) {
      const u32 fifth = word_at(p, at - 4) >> 4 * t;
      w[0] |= spread(fifth, 4), w[1] |= spread(fifth >> 16, 4);
    }
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    p += i * kBlock + upper * 4 * kBlock;
    f[0] = {read_half(p), kMinimum ? read_half(p + 2) : 0.0f};
  }
};
using Q4_0 = Legacy<18, 2, false, false, 8>;
using Q4_1 = Legacy<20, 4, true, false, 0>;
using Q5_0 = Legacy<22, 6, false, true, 16>;
using Q5_1 = Legacy<24, 8, true, true, 0>;

struct Q8_0 : Blocks {
  static constexpr u32 kBytes = 8 * 34;
  static constexpr bool kSigned = true, kSums = false, kAsksAhead = true;
  static constexpr int kWarps = 8;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    w[0] = word_at(p + 4 * t, run * 34 + 2), w[1] = word_at(p + 4 * t, run * 34 + 18);
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    f[0] = {read_half(p + i * 34 + upper * 4 * 34), 0.0f};
  }
};

// Blocks of 256 values.
struct Large : Blocks {
  static constexpr bool kWhole = true;
};

// Two bits, groups of 16.
struct Q2_K : Large {
  static constexpr u32 kBytes = 84;
  static constexpr bool kSixteens = true;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    p += 16 + run / 4 * 32 + 4 * t;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      w[half] = read4<4>(p + 16 * half) >> run % 4 * 2 & 0x03030303u;
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[2]) {
    const u32 s = read<unsigned short>(p + 8 * upper + 2 * i);
    const float d = read_half(p + 80), dmin = -read_half(p + 82);
#pragma unroll
    for (int j = 0; j < 2; ++j)
      f[j] = {d * byte_of(s & 0x0f0fu, j), dmin * byte_of(s >> 4 & 0x0f0fu, j)};
  }
};

struct Q3_K : Large {
  static constexpr u32 kBytes = 110;
  static constexpr bool kSixteens = true;
  static constexpr int kBias = 4;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 low = read4<2>(p + 32 + run / 4 * 32 + 16 * half + 4 * t) >> run % 4 * 2,
                third = read4<2>(p + 16 * half + 4 * t) >> run;
      w[half] = (low & 0x03030303u) | (third & 0x01010101u) << 2;
    }
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[2]) {
    const u32 low = read<unsigned short>(p + 96 + 2 * i) >> 4 * upper,
              high = read<unsigned short>(p + 104 + i % 2 * 2) >> (4 * upper + i / 2 * 2);
    const u32 s = (low & 0x0f0fu) | (high & 0x0303u) << 4;
    const float d = read_half(p + 108);
#pragma unroll
    for (int j = 0; j < 2; ++j) f[j] = {d * (byte_of(s, j) - 32.0f), 0.0f};
  }
};

// Four bits, or five with kFifth; groups of 32 with a scale and a minimum of six bits each.
template <bool kFifth>
struct Q45_K : Large {
  static constexpr u32 kBytes = kFifth ? 176 : 144;
  static constexpr bool kHalves = false;
  static constexpr int kWords = 2, kWarps = kFifth ? 8 : 16, kBlocks = kFifth ? 3 : 2;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    const uint2 codes = read<uint2>(p + (kFifth ? 48 : 16) + run / 2 * 32 + 8 * t);
    w[0] = codes.x >> run % 2 * 4 & 0x0f0f0f0fu, w[1] = codes.y >> run % 2 * 4 & 0x0f0f0f0fu;
    if constexpr (kFifth) {
      const uint2 fifth = read<uint2>(p + 16 + 8 * t);
      w[0] |= (fifth.x >> run & 0x01010101u) << 4, w[1] |= (fifth.y >> run & 0x01010101u) << 4;
    }
  }
  // Those of k_scale() in tensor/ggml_type.h.
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    const uint4 head = read<uint4>(p);
    const u32 s = upper ? (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u)
                        : head.y & 0x3f3f3f3fu,
              m = upper ? (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u)
                        : head.z & 0x3f3f3f3fu;
    const float d = __half2float(__ushort_as_half(static_cast<unsigned short>(head.x))),
                dmin = -__half2float(__ushort_as_half(static_cast<unsigned short>(head.x >> 16)));
    f[0] = {d * byte_of(s, i), dmin * byte_of(m, i)};
  }
};

struct Q6_K : Large {
  static constexpr u32 kBytes = 210;
  static constexpr bool kSixteens = true;
  static constexpr int kBias = 32, kWarps = 8, kBlocks = 3;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = 16 * half + 4 * t;
      const u32 low = read4<2>(p + run / 4 * 64 + run % 2 * 32 + at) >> run % 4 / 2 * 4,
                high = read4<2>(p + 128 + run / 4 * 32 + at) >> run % 4 * 2;
      w[half] = (low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
    }
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[2]) {
    const u32 s = read<unsigned short>(p + 192 + 8 * upper + 2 * i) ^ 0x8080u;  // s + 128
    const float d = read_half(p + 208);
#pragma unroll
    for (int j = 0; j < 2; ++j) f[j] = {d * (byte_of(s, j) - 128.0f), 0.0f};
  }
};

// Four of 16 values of a table, as bytes.
__host__ __device__ constexpr u32 table_bytes(const float (&values)[16], int first) {
  u32 bytes = 0;
  for (int i = 0; i < 4; ++i)
    bytes |= (static_cast<u32>(static_cast<int>(values[first + i])) & 255u) << 8 * i;
  return bytes;
}

// Nibbles that choose one of 16 values: elements j (low) and j + 16 of a byte.
template <const float (&kValues)[16]>
struct Chosen : Blocks {
  static constexpr bool kMixed = true, kSigned = true, kSums = false;
  static __device__ __forceinline__ void choose(u32 codes, u32 (&w)[2]) {
    constexpr u32 kFirst = table_bytes(kValues, 0), kSecond = table_bytes(kValues, 4),
                  kThird = table_bytes(kValues, 8), kFourth = table_bytes(kValues, 12);
    const u32 within = codes & 0x77777777u, eight = and_or(codes >> 1, 0x44444444u, 0x32103210u);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      w[half] = __byte_perm(__byte_perm(kFirst, kSecond, within >> 16 * half),
                            __byte_perm(kThird, kFourth, within >> 16 * half), eight >> 16 * half);
  }
};

struct Iq4Nl : Chosen<kIq4Values> {
  static constexpr u32 kBytes = 8 * 18;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    choose(word_at(p + 4 * t, run * 18 + 2), w);
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    f[0] = {read_half(p + i * 18 + upper * 4 * 18), 0.0f};
  }
};

struct Iq4Xs : Chosen<kIq4Values> {
  static constexpr u32 kBytes = 136;
  static constexpr bool kWhole = true;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    choose(read4<4>(p + 8 + run * 16 + 4 * t), w);
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    const u32 low = p[4 + 2 * upper + i / 2] >> i % 2 * 4,
              high = read<unsigned short>(p + 2) >> (8 * upper + 2 * i);
    f[0] = {read_half(p) * (byte_of((low & 15u) | (high & 3u) << 4, 0) - 32.0f), 0.0f};
  }
};

// The scale is a power of two, 2^(e - 128); the table holds doubled values.
struct Mxfp4 : Chosen<kMxfp4Values> {
  static constexpr u32 kBytes = 8 * 17;
  static __device__ __forceinline__ void bytes(const u8* p, int run, int t, u32 (&w)[2]) {
    choose(read4<1>(p + run * 17 + 1 + 4 * t), w);
  }
  static __device__ __forceinline__ void scales(const u8* p, int upper, int i, float2 (&f)[1]) {
    const u32 e = p[i * 17 + upper * 4 * 17];
    f[0] = {__uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0.0f};
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
