// Decoders of ggml's blocks on a GPU, eight values at a time: Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS,
// MXFP4. Layouts are described in io/ggml_blocks.cpp, whose decoders these are.
//
// Numbers    those of the CPU's decoders and of the gguf package, bit for bit: products of a scale and
//            a quantum are exact in F32, so only the sum is rounded, with or without a fused
//            multiply-add
// Limits     blocks of 18, 22, 34, 110 and 210 bytes are aligned to 2 only, MXFP4's 17 to 1: loads of
//            2 bytes (of 1)
#pragma once

#include <cuda_fp16.h>

#include "cuda/dequantise.cuh"

namespace lk::blocks {

using u8 = std::uint8_t;
using u32 = std::uint32_t;

template <class T>
__device__ __forceinline__ T load_as(const u8* p) {
  return __ldg(reinterpret_cast<const T*>(p));
}
__device__ __forceinline__ float load_half(const u8* p) {
  return __half2float(__ushort_as_half(load_as<unsigned short>(p)));
}

// Eight bytes from an address that is a multiple of kAlign, as two words.
template <int kAlign>
__device__ __forceinline__ uint2 load8(const u8* p) {
  if constexpr (kAlign == 8) return load_as<uint2>(p);
  if constexpr (kAlign == 4) return {load_as<u32>(p), load_as<u32>(p + 4)};
  if constexpr (kAlign == 2) {
    using u16 = unsigned short;
    return {load_as<u16>(p) | static_cast<u32>(load_as<u16>(p + 2)) << 16,
            load_as<u16>(p + 4) | static_cast<u32>(load_as<u16>(p + 6)) << 16};
  }
  uint2 v{0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v.x |= static_cast<u32>(__ldg(p + i)) << 8 * i;
    v.y |= static_cast<u32>(__ldg(p + 4 + i)) << 8 * i;
  }
  return v;
}
// Quanta are handled four bytes at a time: masks and shifts of whole words, then one permutation a value.
__device__ __forceinline__ uint2 bits_of(const uint2& v, u32 shift, u32 mask) {
  return {v.x >> shift & mask, v.y >> shift & mask};
}
__device__ __forceinline__ uint2 join(const uint2& low, const uint2& high, int shift) {
  return {low.x | high.x << shift, low.y | high.y << shift};
}
// Bits 0 to 7 of `bits` as bit 0 of eight bytes.
__device__ __forceinline__ uint2 spread(u32 bits) {
  return {(bits & 15u) * 0x00204081u & 0x01010101u, (bits >> 4 & 15u) * 0x00204081u & 0x01010101u};
}
// Byte j, less `offset`, as a number: a byte in the mantissa of 2^23 is 2^23 and so much.
template <int kOffset = 0>
__device__ __forceinline__ float number_of(const uint2& v, int j) {
  const u32 bits = __byte_perm(j < 4 ? v.x : v.y, 0x4b000000u, 0x7440u + static_cast<u32>(j % 4));
  return __uint_as_float(bits) - static_cast<float>((1 << 23) + kOffset);
}
// Entry of a table that byte j chooses; the bytes hold four times the index.
__device__ __forceinline__ float entry_of(const float* table, const uint2& v, int j) {
  const u32 at = __byte_perm(j < 4 ? v.x : v.y, 0u, 0x4440u + static_cast<u32>(j % 4));
  return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(table) + at);
}
// The nibbles of eight bytes, times four.
__device__ __forceinline__ uint2 entries(const uint2& v, u32 shift) {
  const uint2 q = bits_of(v, shift, 0x0f0f0f0fu);
  return {q.x << 2, q.y << 2};
}

// ---- types: block(p, o, table, v) makes values [8 o, 8 o + 8) of the block at p ------------------

struct Plain {
  static constexpr bool kTable = false;
};

// 32 values in nibbles: bytes 0-15 hold elements j (low) and j + 16 (high). value = (q - offset) d + m
template <int kBytes, int kQuanta, bool kMinimum, bool kFifth, int kOffset>
struct Legacy : Plain {
  static constexpr u32 kValues = 32, kBlockBytes = kBytes;
  static constexpr int kAlign = kBytes % 8 == 0 && kQuanta % 8 == 0 ? 8 : kBytes % 4 == 0 ? 4 : 2;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const float d = load_half(p), m = kMinimum ? load_half(p + 2) : 0.0f;
    const uint2 q = load8<kAlign>(p + kQuanta + o % 2 * 8);
    uint2 codes = bits_of(q, o / 2 * 4, 0x0f0f0f0fu);
    if constexpr (kFifth) codes = join(codes, spread(__ldg(p + kQuanta - 4 + o)), 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float x = number_of<kOffset>(codes, j) * d;
      v[j] = kMinimum ? x + m : x;
    }
  }
};
using Q4_0 = Legacy<18, 2, false, false, 8>;
using Q4_1 = Legacy<20, 4, true, false, 0>;
using Q5_0 = Legacy<22, 6, false, true, 16>;
using Q5_1 = Legacy<24, 8, true, true, 0>;

struct Q8_0 : Plain {
  static constexpr u32 kValues = 32, kBlockBytes = 34;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const float d = load_half(p);
    uint2 q = load8<2>(p + 2 + 8 * o);
    q.x ^= 0x80808080u, q.y ^= 0x80808080u;  // q + 128
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = number_of<128>(q, j) * d;
  }
};

// Two bits, groups of 16: see the layout of Q2_K in io/ggml_blocks.cpp.
struct Q2_K : Plain {
  static constexpr u32 kValues = 256, kBlockBytes = 84;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const u32 group = o / 2, shift = group % 8 / 2 * 2;
    const float d = load_half(p + 80), dmin = load_half(p + 82);
    const u32 s = __ldg(p + group);
    const float scale = d * static_cast<float>(s & 15u),
                minimum = dmin * static_cast<float>(s >> 4);
    const uint2 q =
        bits_of(load8<4>(p + 16 + group / 8 * 32 + group % 2 * 16 + o % 2 * 8), shift, 0x03030303u);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = scale * number_of(q, j) - minimum;
  }
};

struct Q3_K : Plain {
  static constexpr u32 kValues = 256, kBlockBytes = 110;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const u32 group = o / 2, shift = group % 8 / 2 * 2, at = group % 2 * 16 + o % 2 * 8;
    const u8* scales = p + 96;
    const u32 low = group < 8 ? __ldg(scales + group) & 15u : __ldg(scales + group - 8) >> 4;
    const u32 high = __ldg(scales + 8 + group % 4) >> (group / 4 * 2) & 3u;
    const float scale =
        load_half(p + 108) * static_cast<float>(static_cast<int>(low | high << 4) - 32);
    const uint2 low2 = bits_of(load8<2>(p + 32 + group / 8 * 32 + at), shift, 0x03030303u),
                third = bits_of(load8<2>(p + at), group / 2, 0x01010101u);
    const uint2 q = join(low2, third, 2);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = scale * number_of<4>(q, j);
  }
};

// Four bits, or five with kFifth; groups of 32 with a scale and a minimum of six bits each.
template <bool kFifth>
struct Q45_K : Plain {
  static constexpr u32 kValues = 256, kBlockBytes = kFifth ? 176 : 144;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const u32 group = o / 4, shift = group % 2 * 4;
    const u32 halves = load_as<u32>(p);
    const float d = __half2float(__ushort_as_half(static_cast<unsigned short>(halves))),
                dmin = __half2float(__ushort_as_half(static_cast<unsigned short>(halves >> 16)));
    const u8* s = p + 4;
    u32 scale, minimum;
    if (group < 4) {
      scale = __ldg(s + group) & 63u, minimum = __ldg(s + group + 4) & 63u;
    } else {
      const u32 low = __ldg(s + group + 4);
      scale = (low & 15u) | __ldg(s + group - 4) >> 6 << 4;
      minimum = low >> 4 | __ldg(s + group) >> 6 << 4;
    }
    const float a = d * static_cast<float>(scale), b = dmin * static_cast<float>(minimum);
    uint2 q =
        bits_of(load8<8>(p + (kFifth ? 48 : 16) + group / 2 * 32 + o % 4 * 8), shift, 0x0f0f0f0fu);
    if constexpr (kFifth) q = join(q, bits_of(load8<8>(p + 16 + o % 4 * 8), group, 0x01010101u), 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = a * number_of(q, j) - b;
  }
};

struct Q6_K : Plain {
  static constexpr u32 kValues = 256, kBlockBytes = 210;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float*, float (&v)[8]) {
    const u32 group = o / 2, half = group / 8, run = group % 8 / 2;
    const u32 at = group % 2 * 16 + o % 2 * 8;
    const uint2 low = load8<2>(p + half * 64 + run % 2 * 32 + at),
                high = load8<2>(p + 128 + half * 32 + at);
    const float scale =
        load_half(p + 208) * static_cast<float>(static_cast<signed char>(__ldg(p + 192 + group)));
    const uint2 q =
        join(bits_of(low, run / 2 * 4, 0x0f0f0f0fu), bits_of(high, run * 2, 0x03030303u), 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = scale * number_of<32>(q, j);
  }
};

// Nibbles that choose one of 16 values: elements j and j + 16 of a byte.
struct Iq4Nl {
  static constexpr bool kTable = true;
  static constexpr u32 kValues = 32, kBlockBytes = 18;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float* table,
                                               float (&v)[8]) {
    const float d = load_half(p);
    const uint2 q = entries(load8<2>(p + 2 + o % 2 * 8), o / 2 * 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * entry_of(table, q, j);
  }
};

struct Iq4Xs {
  static constexpr bool kTable = true;
  static constexpr u32 kValues = 256, kBlockBytes = 136;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float* table,
                                               float (&v)[8]) {
    const u32 group = o / 4, in = o % 4;
    const u32 high = load_as<unsigned short>(p + 2);
    const u32 scale = (__ldg(p + 4 + group / 2) >> group % 2 * 4 & 15u) | (high >> 2 * group & 3u)
                                                                              << 4;
    const float d = load_half(p) * static_cast<float>(static_cast<int>(scale) - 32);
    const uint2 q = entries(load8<8>(p + 8 + group * 16 + in % 2 * 8), in / 2 * 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * entry_of(table, q, j);
  }
};

// The scale is a power of two, 2^(e - 128); the table holds doubled values.
struct Mxfp4 {
  static constexpr bool kTable = true;
  static constexpr u32 kValues = 32, kBlockBytes = 17;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float* table,
                                               float (&v)[8]) {
    const u32 e = __ldg(p);
    const float d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    const uint2 q = entries(load8<1>(p + 1 + o % 2 * 8), o / 2 * 4);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * entry_of(table, q, j);
  }
};

template <class Type>
struct Decoder {
  static constexpr bool kTable = Type::kTable;
  const u8* blocks;
  i64 row_bytes;
  float table[16];

  // For rows of `cols` values.
  static Decoder of(const QuantisedMatrix& q, i64 cols) {
    const GgmlType& type = *q.format.blocks;
    check(type.block_bytes == Type::kBlockBytes && type.block_values == Type::kValues,
          "cuda: blocks of ", type.name);
    Decoder decoder{q.plane<u8>(Plane::Codes), type.row_bytes(cols), {}};
    if (Type::kTable) {
      const float* values = type.id == 39 ? kMxfp4Values : kIq4Values;
      std::copy(values, values + 16, decoder.table);
    }
    return decoder;
  }
  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float* lut,
                                             float (&v)[kOctet]) const {
    constexpr u32 kOctets = Type::kValues / kOctet;
    Type::block(blocks + row * row_bytes + static_cast<i64>(octet / kOctets) * Type::kBlockBytes,
                octet % kOctets, lut, v);
  }
};

// Calls use.operator()<Decoder>() with the decoder of blocks of `type`.
template <class Use>
auto with_decoder(const GgmlType& type, const Use& use) {
  switch (type.id) {
    case 2:
      return use.template operator()<Decoder<Q4_0>>();
    case 3:
      return use.template operator()<Decoder<Q4_1>>();
    case 6:
      return use.template operator()<Decoder<Q5_0>>();
    case 7:
      return use.template operator()<Decoder<Q5_1>>();
    case 8:
      return use.template operator()<Decoder<Q8_0>>();
    case 10:
      return use.template operator()<Decoder<Q2_K>>();
    case 11:
      return use.template operator()<Decoder<Q3_K>>();
    case 12:
      return use.template operator()<Decoder<Q45_K<false>>>();
    case 13:
      return use.template operator()<Decoder<Q45_K<true>>>();
    case 14:
      return use.template operator()<Decoder<Q6_K>>();
    case 20:
      return use.template operator()<Decoder<Iq4Nl>>();
    case 23:
      return use.template operator()<Decoder<Iq4Xs>>();
    case 39:
      return use.template operator()<Decoder<Mxfp4>>();
    default:
      throw Error(concat("cuda: no kernel for blocks of ", type.name));
  }
}

}  // namespace lk::blocks
