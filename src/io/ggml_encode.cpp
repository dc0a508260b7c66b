#include "io/ggml_encode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

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

// Truncates a number that is at least 0 to a quantum of 4 bits.
std::uint8_t nibble(float x) {
  return static_cast<std::uint8_t>(std::min(static_cast<int>(x), 15));
}

// The scale d is the value of largest magnitude (the first of equals) over -8, so that q = 0 hits
// this one value, sign and all.
void encode_q4_0(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += 32, dst += 18) {
    float extreme = src[0];
    for (int j = 1; j < 32; ++j)
      if (std::abs(src[j]) > std::abs(extreme)) extreme = src[j];
    const float d = extreme / -8, id = inverse(d);
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
    {{"F32", 1, 4}, 0, 0, false, encode_f32},     {{"F16", 1, 2}, 1, 1, false, encode_f16},
    {{"BF16", 1, 2}, 30, 32, false, encode_bf16}, {{"Q8_0", 32, 34}, 8, 7, true, encode_q8_0},
    {{"Q4_0", 32, 18}, 2, 2, true, encode_q4_0},  {{"Q4_1", 32, 20}, 3, 3, true, encode_q4_1},
};

}  // namespace

const GgmlEncoder* find_ggml_encoder(std::string_view name) {
  for (const GgmlEncoder& encoder : kEncoders)
    if (name == encoder.name) return &encoder;
  return nullptr;
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
