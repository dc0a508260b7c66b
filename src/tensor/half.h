// IEEE half precision, as files and quantised blocks store it.
#pragma once

#include <bit>
#include <cstdint>

namespace lk {

// Half to single without a branch, so that loops vectorise: the 15 bits after the sign are shifted
// into place and the exponent is re-biased. Infinities and NaNs get the rest of their exponent, and
// subnormals are normalised by an exact subtraction (no intermediate value is a subnormal single).
inline float half_to_float(std::uint16_t half) {
  constexpr std::uint32_t kExponent = 0x7c00u << 13;
  std::uint32_t bits = (half & 0x7fffu) << 13;
  std::uint32_t exponent = bits & kExponent;
  bits += (127u - 15u) << 23;
  std::uint32_t special = bits + ((128u - 16u) << 23);
  float subnormal = std::bit_cast<float>(bits + (1u << 23)) - std::bit_cast<float>(113u << 23);
  std::uint32_t magnitude = exponent == kExponent ? special
                            : exponent == 0       ? std::bit_cast<std::uint32_t>(subnormal)
                                                  : bits;
  return std::bit_cast<float>(magnitude | (half & 0x8000u) << 16);
}

}  // namespace lk
