#include "io/ggml_blocks.h"

#include <bit>
#include <cstring>

#include "tensor/half.h"

namespace lk {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

namespace {

std::uint16_t load_u16(const std::uint8_t* p) {
  std::uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void decode_f32(const std::uint8_t* __restrict src, std::int64_t n, float* __restrict dst) {
  std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
}

// Blocks of 32 values in 4 bits: byte j holds elements j (low nibble) and j + 16.
// Q4_0: f16 d; u8 qs[16].  value = (q - 8) d
void decode_q4_0(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 18, dst += 32) {
    const float d = half_to_float(load_u16(src));
    for (int j = 0; j < 16; ++j) {
      dst[j] = static_cast<float>((src[2 + j] & 15) - 8) * d;
      dst[j + 16] = static_cast<float>((src[2 + j] >> 4) - 8) * d;
    }
  }
}

// Q4_1: f16 d, m; u8 qs[16].  value = q d + m
void decode_q4_1(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 20, dst += 32) {
    const float d = half_to_float(load_u16(src)), m = half_to_float(load_u16(src + 2));
    for (int j = 0; j < 16; ++j) {
      dst[j] = static_cast<float>(src[4 + j] & 15) * d + m;
      dst[j + 16] = static_cast<float>(src[4 + j] >> 4) * d + m;
    }
  }
}

// Q8_0: f16 d; i8 qs[32].  value = q d
void decode_q8_0(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 34, dst += 32) {
    const float d = half_to_float(load_u16(src));
    for (int j = 0; j < 32; ++j)
      dst[j] = static_cast<float>(static_cast<std::int8_t>(src[2 + j])) * d;
  }
}

// Q5_0, Q5_1: the fifth bits of the 32 elements are the 32 bits of qh.
std::uint32_t load_u32(const std::uint8_t* p) {
  std::uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// f16 d; u32 qh; u8 qs[16].  value = (q - 16) d
void decode_q5_0(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 22, dst += 32) {
    const float d = half_to_float(load_u16(src));
    const std::uint32_t fifth = load_u32(src + 2);
    for (int j = 0; j < 16; ++j) {
      const std::uint32_t low = (src[6 + j] & 15u) | (fifth >> j & 1u) << 4;
      const std::uint32_t high = src[6 + j] >> 4u | (fifth >> (j + 16) & 1u) << 4;
      dst[j] = static_cast<float>(static_cast<int>(low) - 16) * d;
      dst[j + 16] = static_cast<float>(static_cast<int>(high) - 16) * d;
    }
  }
}

// f16 d, m; u32 qh; u8 qs[16].  value = q d + m
void decode_q5_1(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 24, dst += 32) {
    const float d = half_to_float(load_u16(src)), m = half_to_float(load_u16(src + 2));
    const std::uint32_t fifth = load_u32(src + 4);
    for (int j = 0; j < 16; ++j) {
      const std::uint32_t low = (src[8 + j] & 15u) | (fifth >> j & 1u) << 4;
      const std::uint32_t high = src[8 + j] >> 4u | (fifth >> (j + 16) & 1u) << 4;
      dst[j] = static_cast<float>(static_cast<int>(low)) * d + m;
      dst[j + 16] = static_cast<float>(static_cast<int>(high)) * d + m;
    }
  }
}

// The K types: 256 values in groups of 16 or 32, each group with a small integer scale (and
// minimum) under the block's own.

// Q2_K: u8 scales[16] (scale low, minimum high nibble); u8 qs[64]; f16 d, dmin.
// value = d s q - dmin m.  Each half of 128 values lies in 32 bytes, two bits at a time.
void decode_q2_k(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 84) {
    const float d = half_to_float(load_u16(src + 80)), dmin = half_to_float(load_u16(src + 82));
    for (int group = 0; group < 16; ++group, dst += 16) {
      const float scale = d * static_cast<float>(src[group] & 15);
      const float minimum = dmin * static_cast<float>(src[group] >> 4);
      const std::uint8_t* q = src + 16 + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int l = 0; l < 16; ++l) dst[l] = scale * static_cast<float>(q[l] >> shift & 3) - minimum;
    }
  }
}

// Q3_K: u8 hmask[32]; u8 qs[64]; u8 scales[12]; f16 d.  value = d (s - 32) (q - 4)
// Low bits as in Q2_K, the third in hmask: bit k of its 32 bytes for the k-th run of 32 values.
// Scales have 6 bits: the low four in the first 8 bytes' nibbles, the high two in the last 4 bytes.
void decode_q3_k(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 110) {
    const std::uint8_t *third = src, *scales = src + 96;
    const float d = half_to_float(load_u16(src + 108));
    for (int group = 0; group < 16; ++group, dst += 16) {
      const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
      const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const std::uint8_t *q = src + 32 + group / 8 * 32 + group % 2 * 16,
                         *t = third + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int l = 0; l < 16; ++l)
        dst[l] =
            scale * static_cast<float>((q[l] >> shift & 3) + (t[l] >> (group / 2) & 1) * 4 - 4);
    }
  }
}

// Q4_K: f16 d, dmin; u8 scales[12]; u8 qs[128].  value = d s q - dmin m
// 32 bytes hold two groups of 32: one in the low nibbles, the next in the high ones.
void decode_q4_k(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 144) {
    const float d = half_to_float(load_u16(src)), dmin = half_to_float(load_u16(src + 2));
    for (int group = 0; group < 8; ++group, dst += 32) {
      const KScale k = k_scale(src + 4, group);
      const float scale = d * static_cast<float>(k.scale);
      const float minimum = dmin * static_cast<float>(k.minimum);
      const std::uint8_t* q = src + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int l = 0; l < 32; ++l)
        dst[l] = scale * static_cast<float>(q[l] >> shift & 15) - minimum;
    }
  }
}

// Q5_K: as Q4_K, with u8 qh[32] before qs: bit j of its bytes is the fifth of group j.
void decode_q5_k(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 176) {
    const float d = half_to_float(load_u16(src)), dmin = half_to_float(load_u16(src + 2));
    const std::uint8_t* fifth = src + 16;
    for (int group = 0; group < 8; ++group, dst += 32) {
      const KScale k = k_scale(src + 4, group);
      const float scale = d * static_cast<float>(k.scale);
      const float minimum = dmin * static_cast<float>(k.minimum);
      const std::uint8_t* q = src + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int l = 0; l < 32; ++l)
        dst[l] = scale * static_cast<float>((q[l] >> shift & 15) + (fifth[l] >> group & 1) * 16) -
                 minimum;
    }
  }
}

// Q6_K: u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d.  value = d s (q - 32)
// Each half of 128 values: four runs of 32; the low four bits in 64 bytes (runs 0, 1 low nibbles,
// 2, 3 high), the high two of all four runs in 32 bytes.
void decode_q6_k(const std::uint8_t* __restrict src, std::int64_t n_blocks, float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 210) {
    const float d = half_to_float(load_u16(src + 208));
    for (int group = 0; group < 16; ++group, dst += 16) {
      const int half = group / 8, run = group % 8 / 2, at = group % 2 * 16;
      const std::uint8_t* low = src + half * 64 + run % 2 * 32 + at;
      const std::uint8_t* high = src + 128 + half * 32 + at;
      const float scale = d * static_cast<float>(static_cast<std::int8_t>(src[192 + group]));
      const int low_shift = run / 2 * 4, high_shift = run * 2;
      for (int l = 0; l < 16; ++l)
        dst[l] = scale * static_cast<float>(
                             ((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32);
    }
  }
}

// Nibbles that choose a value of a table: byte j holds elements j (low nibble) and j + 16.
void choose(const float* table, const std::uint8_t* qs, float d, float* dst) {
  for (int j = 0; j < 16; ++j) {
    dst[j] = d * table[qs[j] & 15];
    dst[j + 16] = d * table[qs[j] >> 4];
  }
}

// IQ4_NL: f16 d; u8 qs[16]
void decode_iq4_nl(const std::uint8_t* __restrict src, std::int64_t n_blocks,
                   float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 18, dst += 32)
    choose(kIq4Values, src + 2, half_to_float(load_u16(src)), dst);
}

// IQ4_XS: f16 d; u16 scales_h; u8 scales_l[4]; u8 qs[128].  value = d (s - 32) table[q]
// Eight groups of 32; a scale's low four bits in scales_l's nibbles, the high two in scales_h.
void decode_iq4_xs(const std::uint8_t* __restrict src, std::int64_t n_blocks,
                   float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 136) {
    const float d = half_to_float(load_u16(src));
    const int high = load_u16(src + 2);
    for (int group = 0; group < 8; ++group, dst += 32) {
      const int scale = (src[4 + group / 2] >> group % 2 * 4 & 15) | (high >> 2 * group & 3) << 4;
      choose(kIq4Values, src + 8 + 16 * group, d * static_cast<float>(scale - 32), dst);
    }
  }
}

// MXFP4: u8 e; u8 qs[16].  value = 2^(e - 128) table[q]; below e = 2 the power is subnormal.
void decode_mxfp4(const std::uint8_t* __restrict src, std::int64_t n_blocks,
                  float* __restrict dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 17, dst += 32) {
    const std::uint32_t e = src[0];
    const std::uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    choose(kMxfp4Values, src + 1, std::bit_cast<float>(bits), dst);
  }
}

constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, decode_f32},
    {1, "F16", 1, 2, decode_f16},
    {2, "Q4_0", 32, 18, decode_q4_0},
    {3, "Q4_1", 32, 20, decode_q4_1},
    {6, "Q5_0", 32, 22, decode_q5_0},
    {7, "Q5_1", 32, 24, decode_q5_1},
    {8, "Q8_0", 32, 34, decode_q8_0},
    {9, "Q8_1", 32, 36, nullptr},
    {10, "Q2_K", 256, 84, decode_q2_k},
    {11, "Q3_K", 256, 110, decode_q3_k},
    {12, "Q4_K", 256, 144, decode_q4_k},
    {13, "Q5_K", 256, 176, decode_q5_k},
    {14, "Q6_K", 256, 210, decode_q6_k},
    {15, "Q8_K", 256, 292, nullptr},
    {16, "IQ2_XXS", 256, 66, nullptr},
    {17, "IQ2_XS", 256, 74, nullptr},
    {18, "IQ3_XXS", 256, 98, nullptr},
    {19, "IQ1_S", 256, 50, nullptr},
    {20, "IQ4_NL", 32, 18, decode_iq4_nl},
    {21, "IQ3_S", 256, 110, nullptr},
    {22, "IQ2_S", 256, 82, nullptr},
    {23, "IQ4_XS", 256, 136, decode_iq4_xs},
    {24, "I8", 1, 1, nullptr},
    {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},
    {27, "I64", 1, 8, nullptr},
    {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, nullptr},
    {30, "BF16", 1, 2, decode_bf16},
    {34, "TQ1_0", 256, 54, nullptr},
    {35, "TQ2_0", 256, 66, nullptr},
    {39, "MXFP4", 32, 17, decode_mxfp4},
    {40, "NVFP4", 64, 36, nullptr},
    {41, "Q1_0", 128, 18, nullptr},
};

}  // namespace

const GgmlType* find_ggml_type(std::uint64_t id) {
  for (const GgmlType& type : kTypes)
    if (type.id == id) return &type;
  return nullptr;
}

void decode_f16(const std::uint8_t* __restrict src, std::int64_t n, float* __restrict dst) {
  for (std::int64_t i = 0; i < n; ++i) dst[i] = half_to_float(load_u16(src + 2 * i));
}

void decode_bf16(const std::uint8_t* __restrict src, std::int64_t n, float* __restrict dst) {
  for (std::int64_t i = 0; i < n; ++i)
    dst[i] = std::bit_cast<float>(static_cast<std::uint32_t>(load_u16(src + 2 * i)) << 16);
}

}  // namespace lk
