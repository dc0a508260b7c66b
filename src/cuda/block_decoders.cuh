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
__device__ __forceinline__ u32 byte_of(const uint2& v, int j) {
  return (j < 4 ? v.x : v.y) >> j % 4 * 8 & 255u;
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
    u32 fifth = 0;
    if constexpr (kFifth) {
      const u8* at = p + kQuanta - 4;
      fifth =
          (load_as<unsigned short>(at) | static_cast<u32>(load_as<unsigned short>(at + 2)) << 16) >>
          8 * o;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u32 code = (byte_of(q, j) >> o / 2 * 4 & 15u) | (kFifth ? (fifth >> j & 1u) << 4 : 0u);
      const float x = static_cast<float>(static_cast<int>(code) - kOffset) * d;
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
    const uint2 q = load8<2>(p + 2 + 8 * o);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] = static_cast<float>(static_cast<signed char>(byte_of(q, j))) * d;
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
    const uint2 q = load8<4>(p + 16 + group / 8 * 32 + group % 2 * 16 + o % 2 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] = scale * static_cast<float>(byte_of(q, j) >> shift & 3u) - minimum;
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
    const uint2 q = load8<2>(p + 32 + group / 8 * 32 + at), third = load8<2>(p + at);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] =
          scale * static_cast<float>(static_cast<int>((byte_of(q, j) >> shift & 3u) +
                                                      (byte_of(third, j) >> (group / 2) & 1u) * 4) -
                                     4);
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
    const uint2 q = load8<8>(p + (kFifth ? 48 : 16) + group / 2 * 32 + o % 4 * 8);
    uint2 fifth{0, 0};
    if constexpr (kFifth) fifth = load8<8>(p + 16 + o % 4 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      u32 code = byte_of(q, j) >> shift & 15u;
      if constexpr (kFifth) code |= (byte_of(fifth, j) >> group & 1u) << 4;
      v[j] = a * static_cast<float>(code) - b;
    }
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
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u32 code = (byte_of(low, j) >> run / 2 * 4 & 15u) | (byte_of(high, j) >> run * 2 & 3u)
                                                                    << 4;
      v[j] = scale * static_cast<float>(static_cast<int>(code) - 32);
    }
  }
};

// Nibbles that choose one of 16 values: elements j and j + 16 of a byte.
struct Iq4Nl {
  static constexpr bool kTable = true;
  static constexpr u32 kValues = 32, kBlockBytes = 18;
  static __device__ __forceinline__ void block(const u8* p, u32 o, const float* table,
                                               float (&v)[8]) {
    const float d = load_half(p);
    const uint2 q = load8<2>(p + 2 + o % 2 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * table[byte_of(q, j) >> o / 2 * 4 & 15u];
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
    const uint2 q = load8<8>(p + 8 + group * 16 + in % 2 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * table[byte_of(q, j) >> in / 2 * 4 & 15u];
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
    const uint2 q = load8<1>(p + 1 + o % 2 * 8);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = d * table[byte_of(q, j) >> o / 2 * 4 & 15u];
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
