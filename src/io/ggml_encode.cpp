#include "io/ggml_encode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "io/ggml_encode_k.h"
#include "tensor/dtype.h"

namespace lk {

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

namespace {

void store_u16(std::uint8_t* p, std::uint16_t v) { std::memcpy(p, &v, sizeof v); }

void encode_f32(const float* src, std::int64_t n, std::uint8_t* dst) {
  std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
}

void encode_f16(const float* src, std::int64_t n, std::uint8_t* dst) {
  for (std::int64_t i = 0; i < n; ++i) store_u16(dst + 2 * i, float_to_half(src[i]));
}

void encode_bf16(const float* src, std::int64_t n, std::uint8_t* dst) {
  for (std::int64_t i = 0; i < n; ++i) store_u16(dst + 2 * i, bf16(src[i]).bits);
}

// 1 / d, or 0 where the block is (as good as) constant. Below 2^-128 the quotient would be
// infinite; such a scale is 0 as F16 anyway.
float inverse(float d) {
  const float id = d == 0 ? 0 : 1 / d;
  return std::isfinite(id) ? id : 0;
}

// Truncates a number that is at least 0 to a quantum of at most `most`.
std::uint8_t quantum(float x, int most) {
  return static_cast<std::uint8_t>(std::min(static_cast<int>(x), most));
}
std::uint8_t nibble(float x) { return quantum(x, 15); }

float extreme_of(const float* src) {
  float extreme = src[0];
  for (int j = 1; j < 32; ++j)
    if (std::abs(src[j]) > std::abs(extreme)) extreme = src[j];
  return extreme;
}

// The scale d is the value of largest magnitude (the first of equals) over -8, so that q = 0 hits
// this one value, sign and all.
void encode_q4_0(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 18) {
    const float d = extreme_of(src) / -8, id = inverse(d);
    store_u16(dst, float_to_half(d));
    for (int j = 0; j < 16; ++j)
      dst[2 + j] = static_cast<std::uint8_t>(nibble(src[j] * id + 8.5f) |
                                             nibble(src[j + 16] * id + 8.5f) << 4);
  }
}

void encode_q4_1(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 20) {
    const auto [lowest, highest] = std::minmax_element(src, src + 32);
    const float m = *lowest, d = (*highest - m) / 15, id = inverse(d);
    store_u16(dst, float_to_half(d));
    store_u16(dst + 2, float_to_half(m));
    for (int j = 0; j < 16; ++j)
      dst[4 + j] = static_cast<std::uint8_t>(nibble((src[j] - m) * id + 0.5f) |
                                             nibble((src[j + 16] - m) * id + 0.5f) << 4);
  }
}

// Codes of 5 bits: the low four as in the types of 4, the fifth bits of all 32 before them.
void store_five_bits(const std::array<std::uint8_t, 32>& codes, std::uint8_t* fifth) {
  std::fill(fifth, fifth + 4, std::uint8_t{0});
  for (std::size_t j = 0; j < 32; ++j)
    fifth[j / 8] = static_cast<std::uint8_t>(fifth[j / 8] | codes[j] >> 4 << j % 8);
  for (std::size_t j = 0; j < 16; ++j)
    fifth[4 + j] = static_cast<std::uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

void encode_q5_0(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 22) {
    const float d = extreme_of(src) / -16, id = inverse(d);
    store_u16(dst, float_to_half(d));
    std::array<std::uint8_t, 32> codes;
    for (std::size_t j = 0; j < 32; ++j) codes[j] = quantum(src[j] * id + 16.5f, 31);
    store_five_bits(codes, dst + 2);
  }
}

void encode_q5_1(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 24) {
    const auto [lowest, highest] = std::minmax_element(src, src + 32);
    const float m = *lowest, d = (*highest - m) / 31, id = inverse(d);
    store_u16(dst, float_to_half(d));
    store_u16(dst + 2, float_to_half(m));
    std::array<std::uint8_t, 32> codes;
    for (std::size_t j = 0; j < 32; ++j) codes[j] = quantum((src[j] - m) * id + 0.5f, 31);
    store_five_bits(codes, dst + 4);
  }
}

void encode_q8_0(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 34) {
    float largest = 0;
    for (int j = 0; j < 32; ++j) largest = std::max(largest, std::abs(src[j]));
    const float d = largest / 127, id = inverse(d);
    store_u16(dst, float_to_half(d));
    for (int j = 0; j < 32; ++j)  // round(): half away from zero
      dst[2 + j] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::round(src[j] * id)));
  }
}

constexpr GgmlEncoder kEncoders[] = {
    {{"F32", 1, 4}, 0, 0, false, nullptr, encode_f32},
    {{"F16", 1, 2}, 1, 1, false, nullptr, encode_f16},
    {{"BF16", 1, 2}, 30, 32, false, nullptr, encode_bf16},
    {{"Q8_0", 32, 34}, 8, 7, true, "F16", encode_q8_0},
    {{"Q6_K", 256, 210}, 14, 18, true, "Q8_0", encode_q6_k},
    {{"Q5_K", 256, 176}, 13, 16, true, "Q5_1", encode_q5_k},
    {{"Q5_1", 32, 24}, 7, 9, true, "F16", encode_q5_1},
    {{"Q5_0", 32, 22}, 6, 8, true, "F16", encode_q5_0},
    {{"Q4_K", 256, 144}, 12, 14, true, "Q5_0", encode_q4_k},
    {{"Q4_1", 32, 20}, 3, 3, true, "F16", encode_q4_1},
    {{"Q4_0", 32, 18}, 2, 2, true, "F16", encode_q4_0},
    {{"Q3_K", 256, 110}, 11, 11, true, "Q4_0", encode_q3_k},
    {{"Q2_K", 256, 84}, 10, 21, true, "Q4_0", encode_q2_k},
};

}  // namespace

const GgmlEncoder* find_ggml_encoder(std::string_view name) {
  for (const GgmlEncoder& encoder : kEncoders)
    if (name == encoder.name) return &encoder;
  return nullptr;
}

const std::string& ggml_encoder_names() {
  static const std::string names = [] {
    std::string all;
    for (const GgmlEncoder& encoder : kEncoders) {
      const bool last = &encoder == std::end(kEncoders) - 1;
      if (!all.empty()) all += last ? " or " : ", ";
      for (const char* c = encoder.name; *c; ++c)
        all += static_cast<char>(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    }
    return all;
  }();
  return names;
}

std::uint16_t float_to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // over 65,519
  if (magnitude < 0x38800000u) {
    // A subnormal half counts in steps of 2^-24: adding 1/2, whose last bit is 2^-24, rounds to
    // them.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000u));
  }
  const std::uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<std::uint16_t>(sign | (magnitude - ((127u - 15u) << 23) + 0xfffu + odd) >> 13);
}

}  // namespace lk
