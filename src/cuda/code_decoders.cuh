// Decoders of codes with scales beside them on a GPU, eight values at a time: bitsandbytes' NF4 and FP4,
// FP8 and 4-bit integers by groups. tensor/quantised.h defines the formats.
//
// Numbers    those of the CPU's decoder, bit for bit: F32 in the same order, no fused multiply-add in
//            a scale of scales, one rounding to the stated dtype
// Limits     an octet is read in one load where K, blocks and groups are multiples of 8 (kWhole);
//            other shapes are read byte by byte
#pragma once

#include <cuda_fp16.h>

#include "cuda/dequantise.cuh"

namespace lk::codes {

using u32 = std::uint32_t;

// Divides by a size of blocks: by a shift where that is a power of two, or where one block holds all.
struct Divisor {
  u32 size, shift;
  static Divisor of(i64 size, i64 n) {
    if (size >= n) return {static_cast<u32>(size), 31};
    u32 shift = 0;
    while ((i64{1} << shift) < size) ++shift;
    return {static_cast<u32>(size), (i64{1} << shift) == size ? shift : 32};
  }
  __device__ __forceinline__ u32 divide(u32 x) const { return shift < 32 ? shifted(x) : x / size; }
  __device__ __forceinline__ u32 shifted(u32 x) const { return x >> shift; }
};

// E4M3 to F32: the seven bits after the sign are a float's but for the bias; subnormals come out right.
__device__ __forceinline__ float from_e4m3(u32 code) {
  const float x = __uint_as_float((code & 0x7fu) << 20) * 0x1p120f;
  return code & 0x80u ? -x : x;
}

// Two of them, the first in the low byte.
__device__ __forceinline__ float2 from_e4m3x2(u32 codes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  u32 halves;  // a half holds every E4M3 number
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(halves) : "h"(static_cast<unsigned short>(codes)));
  return __half22float2(*reinterpret_cast<const __half2*>(&halves));
#else
  return {from_e4m3(codes & 255u), from_e4m3(codes >> 8)};
#endif
}

// Nf4 and Fp4.
template <bool kNested, bool kWhole>
struct CodebookDecoder {
  static constexpr bool kTable = true;
  float table[16];
  const std::uint8_t* codes;
  const void* scales;
  const float *outer, *map;
  float offset;
  i64 cols;
  int block_shift;  // blocks are powers of two
  RoundedTo rounded;

  // For rows of `cols` values.
  static CodebookDecoder of(const QuantisedMatrix& q, i64 cols) {
    const i64 block = q.format.block;
    check((block & (block - 1)) == 0, "cuda: blocks of ", block, " values");
    CodebookDecoder decoder{.table = {},
                            .codes = q.plane<std::uint8_t>(Plane::Codes),
                            .scales = q.plane<void>(Plane::Scales),
                            .outer = q.plane<float>(Plane::Outer),
                            .map = q.plane<float>(Plane::Map),
                            .offset = q.offset,
                            .cols = cols,
                            .block_shift = 0,
                            .rounded = q.format.rounded};
    while ((i64{1} << decoder.block_shift) < block) ++decoder.block_shift;
    const std::array<float, 16>& values = codebook(q.format.encoding);
    std::copy(values.begin(), values.end(), decoder.table);
    return decoder;
  }

  __device__ __forceinline__ float scale(i64 i) const {
    if constexpr (kNested) {
      const float inner = __ldg(map + __ldg(static_cast<const std::uint8_t*>(scales) + i));
      return __fadd_rn(__fmul_rn(inner, __ldg(outer + i / kNestedBlock)), offset);
    }
    return __ldg(static_cast<const float*>(scales) + i);
  }
  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float* lut,
                                             float (&v)[kOctet]) const {
    const i64 first = static_cast<i64>(row) * cols + static_cast<i64>(octet) * kOctet;
    if constexpr (kWhole) {
      const u32 word = __ldg(reinterpret_cast<const u32*>(codes + first / 2));
      const float s = scale(first >> block_shift);
      // The even elements lie in the high nibbles. Bytes hold where an entry begins.
      const u32 even = word >> 2 & 0x3c3c3c3cu, odd = word << 2 & 0x3c3c3c3cu;
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        const u32 at = __byte_perm(j % 2 ? odd : even, 0u, 0x4440u + static_cast<u32>(j / 2));
        v[j] = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(lut) + at) * s;
      }
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const i64 at = first + j;
        v[j] = 0;
        if (static_cast<i64>(octet) * kOctet + j >= cols) continue;
        const u32 byte = __ldg(codes + at / 2);
        v[j] = lut[at % 2 ? byte & 15u : byte >> 4] * scale(at >> block_shift);
      }
    }
    round_to(rounded, v);
  }
};

template <bool kWhole>
struct Fp8Decoder {
  static constexpr bool kTable = false;
  const std::uint8_t* codes;
  const float* scales;
  i64 cols;
  Divisor scale_rows, block;
  u32 grid;
  RoundedTo rounded;

  static Fp8Decoder of(const QuantisedMatrix& q, i64 cols) {
    const i64 block = q.format.block;
    return {q.plane<std::uint8_t>(Plane::Codes),
            q.plane<float>(Plane::Scales),
            cols,
            Divisor::of(q.format.scale_rows, q[Plane::Scales].rows() * q.format.scale_rows),
            Divisor::of(block, cols),
            static_cast<u32>(ceil_div(cols, block)),
            q.format.rounded};
  }

  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float*,
                                             float (&v)[kOctet]) const {
    const std::uint8_t* at = codes + row * cols + static_cast<i64>(octet) * kOctet;
    const float* s = scales + static_cast<i64>(scale_rows.divide(row)) * grid;
    if constexpr (kWhole) {
      const uint2 words = __ldg(reinterpret_cast<const uint2*>(at));
      const float one = __ldg(s + block.divide(octet * kOctet));
#pragma unroll
      for (int j = 0; j < kOctet; j += 2) {
        const float2 pair = from_e4m3x2((j < 4 ? words.x : words.y) >> j % 4 * 8 & 0xffffu);
        v[j] = pair.x * one, v[j + 1] = pair.y * one;
      }
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const u32 k = octet * kOctet + j;
        v[j] = k < cols ? from_e4m3(__ldg(at + j)) * __ldg(s + block.divide(k)) : 0;
      }
    }
    round_to(rounded, v);
  }
};

template <bool kWhole>
struct Int4Decoder {
  static constexpr bool kTable = false;
  const std::uint8_t *codes, *zeros;
  const float* scales;
  i64 cols, row_bytes;
  Divisor block;
  u32 groups;
  RoundedTo rounded;

  static Int4Decoder of(const QuantisedMatrix& q, i64 cols) {
    const i64 block = q.format.block;
    return {q.plane<std::uint8_t>(Plane::Codes),
            q.plane<std::uint8_t>(Plane::Zeros),
            q.plane<float>(Plane::Scales),
            cols,
            ceil_div(cols, 2),
            Divisor::of(block, cols),
            static_cast<u32>(ceil_div(cols, block)),
            q.format.rounded};
  }

  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float*,
                                             float (&v)[kOctet]) const {
    const std::uint8_t* at = codes + row * row_bytes + static_cast<i64>(octet) * (kOctet / 2);
    const i64 g0 = static_cast<i64>(row) * groups;
    if constexpr (kWhole) {
      const u32 word = __ldg(reinterpret_cast<const u32*>(at));
      const i64 g = g0 + block.divide(octet * kOctet);
      const int zero = __ldg(zeros + g);
      const float s = __ldg(scales + g);
      const u32 even = word & 0x0f0f0f0fu, odd = word >> 4 & 0x0f0f0f0fu;
      const float base = static_cast<float>((1 << 23) + zero);
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {  // a byte in the mantissa of 2^23 is 2^23 and so much
        const u32 bits =
            __byte_perm(j % 2 ? odd : even, 0x4b000000u, 0x7440u + static_cast<u32>(j / 2));
        v[j] = (__uint_as_float(bits) - base) * s;
      }
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const u32 k = octet * kOctet + j;
        v[j] = 0;
        if (k >= cols) continue;
        const u32 byte = __ldg(at + j / 2);
        const int code = static_cast<int>(j % 2 ? byte >> 4 : byte & 15u);
        const i64 g = g0 + block.divide(k);
        v[j] = static_cast<float>(code - __ldg(zeros + g)) * __ldg(scales + g);
      }
    }
    round_to(rounded, v);
  }
};

// Whether an octet of a row of `cols` values has one scale and lies at a whole address.
inline bool whole_octets(const QuantisedFormat& f, i64 cols) {
  return cols % kOctet == 0 && (f.block % kOctet == 0 || f.block >= cols);
}

// Calls use.operator()<Decoder>() with the decoder of a format that is not ggml's.
template <bool kWhole, class Use>
auto with_decoder(const QuantisedFormat& f, const Use& use) {
  switch (f.encoding) {
    case Encoding::Nf4:
    case Encoding::Fp4:
      return f.nested ? use.template operator()<CodebookDecoder<true, kWhole>>()
                      : use.template operator()<CodebookDecoder<false, kWhole>>();
    case Encoding::Fp8:
      return use.template operator()<Fp8Decoder<kWhole>>();
    case Encoding::Int4:
      return use.template operator()<Int4Decoder<kWhole>>();
    case Encoding::Blocks:
      break;
  }
  throw Error(concat("cuda: no codes of ", f.name()));
}

}  // namespace lk::codes
