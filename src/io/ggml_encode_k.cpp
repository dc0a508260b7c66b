#include "io/ggml_encode_k.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "io/ggml_encode.h"
#include "tensor/half.h"

namespace lk {
namespace {

constexpr int kBlock = 256;

void store_half(std::uint8_t* p, std::uint16_t v) { std::memcpy(p, &v, sizeof v); }

// The half nearest to x, as stored and as read.
struct Half {
  std::uint16_t bits;
  float value;
  explicit Half(float x) : bits(float_to_half(x)), value(half_to_float(bits)) {}
};

int nearest(float x, int low, int high) {
  return static_cast<int>(
      std::clamp(std::nearbyint(x), static_cast<float>(low), static_cast<float>(high)));
}

// x is about scale q - minimum, with q in [0, most] and minimum >= 0.
struct Affine {
  float scale = 0, minimum = 0;
};

// The best of some pairs for n values. A candidate rounds under a trial scale, wider or narrower than
// the range asks for, and then takes the scale and minimum of least squares for those codes.
Affine fit_affine(const float* x, int n, int most) {
  const auto [lowest, highest] = std::minmax_element(x, x + n);
  const float low = std::min(*lowest, 0.0f), range = *highest - low;
  if (!(range > 0)) return {0, -low};
  Affine best;
  float least = INFINITY;
  for (int trial = -4; trial <= 8; ++trial) {
    const float inverse = (static_cast<float>(most) + 0.125f * static_cast<float>(trial)) / range;
    float q1 = 0, q2 = 0, x1 = 0, qx = 0;
    std::array<float, 32> codes;
    for (int i = 0; i < n; ++i) {
      const auto q = static_cast<float>(nearest(inverse * (x[i] - low), 0, most));
      codes[static_cast<std::size_t>(i)] = q;
      q1 += q, q2 += q * q, x1 += x[i], qx += q * x[i];
    }
    const float count = static_cast<float>(n), determinant = count * q2 - q1 * q1;
    if (!(determinant > 0)) continue;
    Affine fit{(count * qx - q1 * x1) / determinant, (q1 * qx - q2 * x1) / determinant};
    if (fit.minimum < 0) fit = {qx / q2, 0};
    float error = 0;
    for (int i = 0; i < n; ++i) {
      const float off = fit.scale * codes[static_cast<std::size_t>(i)] - fit.minimum - x[i];
      error += off * off;
    }
    if (error < least && fit.scale > 0) least = error, best = fit;
  }
  return least < INFINITY ? best : Affine{range / static_cast<float>(most), -low};
}

// The scale of x about scale q, with q in [-half, half - 1]: the value of largest magnitude goes to
// either end, or nearly.
float fit_symmetric(const float* x, int n, int half) {
  float extreme = 0;
  for (int i = 0; i < n; ++i)
    if (std::abs(x[i]) > std::abs(extreme)) extreme = x[i];
  if (extreme == 0) return 0;
  float best = extreme / -static_cast<float>(half), least = INFINITY;
  for (int trial = -8; trial <= 8; ++trial)
    for (const int end : {-half, half - 1}) {
      const float inverse =
          (static_cast<float>(end) + 0.125f * static_cast<float>(trial)) / extreme;
      float q2 = 0, qx = 0, x2 = 0;
      for (int i = 0; i < n; ++i) {
        const auto q = static_cast<float>(nearest(inverse * x[i], -half, half - 1));
        q2 += q * q, qx += q * x[i], x2 += x[i] * x[i];
      }
      if (!(q2 > 0)) continue;
      const float error = x2 - qx * qx / q2;
      if (error < least) least = error, best = qx / q2;
    }
  return best;
}

using Codes = std::array<std::uint8_t, kBlock>;

// A block of groups with scale and minimum: d s q - dmin m.
template <int kGroups>
struct AffineBlock {
  static constexpr int kGroup = kBlock / kGroups;
  Half d{0}, dmin{0};
  std::array<std::uint8_t, kGroups> scale{}, minimum{};
  Codes codes{};

  // `steps`: the largest integer of a scale.
  AffineBlock(const float* x, int most, int steps) {
    std::array<Affine, kGroups> fits;
    float scales = 0, minima = 0;
    for (std::size_t g = 0; g < kGroups; ++g) {
      fits[g] = fit_affine(x + g * kGroup, kGroup, most);
      scales = std::max(scales, fits[g].scale), minima = std::max(minima, fits[g].minimum);
    }
    d = Half(scales / static_cast<float>(steps)), dmin = Half(minima / static_cast<float>(steps));
    const auto whole = [&](float v, const Half& unit) {
      return static_cast<std::uint8_t>(unit.value > 0 ? nearest(v / unit.value, 0, steps) : 0);
    };
    for (std::size_t g = 0; g < kGroups; ++g) {
      scale[g] = whole(fits[g].scale, d), minimum[g] = whole(fits[g].minimum, dmin);
      const float step = d.value * scale[g], offset = dmin.value * minimum[g];
      for (std::size_t i = g * kGroup; i < (g + 1) * kGroup; ++i)
        codes[i] =
            static_cast<std::uint8_t>(step > 0 ? nearest((x[i] + offset) / step, 0, most) : 0);
    }
  }
};

// A block of 16 groups with signed scales: d s q. Codes are stored with `half` added.
struct SymmetricBlock {
  Half d{0};
  std::array<int, 16> scale{};
  Codes codes{};

  // Scales are integers in [-scale_half, scale_half - 1].
  SymmetricBlock(const float* x, int half, int scale_half) {
    std::array<float, 16> fits;
    float extreme = 0;
    for (std::size_t g = 0; g < 16; ++g) {
      fits[g] = fit_symmetric(x + g * 16, 16, half);
      if (std::abs(fits[g]) > std::abs(extreme)) extreme = fits[g];
    }
    d = Half(extreme / -static_cast<float>(scale_half));
    for (std::size_t g = 0; g < 16; ++g) {
      scale[g] = d.value != 0 ? nearest(fits[g] / d.value, -scale_half, scale_half - 1) : 0;
      const float step = d.value * static_cast<float>(scale[g]);
      for (std::size_t i = g * 16; i < (g + 1) * 16; ++i)
        codes[i] = static_cast<std::uint8_t>(
            (step != 0 ? nearest(x[i] / step, -half, half - 1) : 0) + half);
    }
  }
};

void set_bits(std::uint8_t& byte, unsigned bits, int shift) {
  byte = static_cast<std::uint8_t>(byte | bits << shift);
}

// The inverse of k_scale() for all eight groups.
void pack_scales(const AffineBlock<8>& block, std::uint8_t* packed) {
  for (std::size_t j = 0; j < 8; ++j) {
    const unsigned s = block.scale[j], m = block.minimum[j];
    if (j < 4) {
      set_bits(packed[j], s, 0), set_bits(packed[j + 4], m, 0);
    } else {
      set_bits(packed[j + 4], s & 15u, 0), set_bits(packed[j + 4], m & 15u, 4);
      set_bits(packed[j - 4], s >> 4, 6), set_bits(packed[j], m >> 4, 6);
    }
  }
}

// Where Q2_K and Q3_K keep the low two bits of value i: byte and shift.
std::size_t two_bit_byte(std::size_t i) { return i / 128 * 32 + i % 32; }
int two_bit_shift(std::size_t i) { return static_cast<int>(i % 128 / 32 * 2); }

// Q4_K, and Q5_K with a fifth bit of its own.
void encode_q45_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst, bool fifth) {
  const std::size_t bytes = fifth ? 176 : 144, quanta = fifth ? 48 : 16;
  for (std::int64_t b = 0; b < n_blocks; ++b, src += kBlock, dst += bytes) {
    const AffineBlock<8> block(src, fifth ? 31 : 15, 63);
    std::fill(dst, dst + bytes, std::uint8_t{0});
    store_half(dst, block.d.bits), store_half(dst + 2, block.dmin.bits);
    pack_scales(block, dst + 4);
    for (std::size_t i = 0; i < kBlock; ++i) {
      const std::size_t group = i / 32;
      set_bits(dst[quanta + group / 2 * 32 + i % 32], block.codes[i] & 15u,
               static_cast<int>(group % 2 * 4));
      if (fifth) set_bits(dst[16 + i % 32], block.codes[i] >> 4u, static_cast<int>(group));
    }
  }
}

}  // namespace

void encode_q2_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += kBlock, dst += 84) {
    const AffineBlock<16> block(src, 3, 15);
    std::fill(dst, dst + 84, std::uint8_t{0});
    store_half(dst + 80, block.d.bits), store_half(dst + 82, block.dmin.bits);
    for (std::size_t g = 0; g < 16; ++g)
      dst[g] = static_cast<std::uint8_t>(block.scale[g] | block.minimum[g] << 4);
    for (std::size_t i = 0; i < kBlock; ++i)
      set_bits(dst[16 + two_bit_byte(i)], block.codes[i], two_bit_shift(i));
  }
}

void encode_q3_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += kBlock, dst += 110) {
    const SymmetricBlock block(src, 4, 32);
    std::fill(dst, dst + 110, std::uint8_t{0});
    store_half(dst + 108, block.d.bits);
    for (std::size_t g = 0; g < 16; ++g) {
      const auto s = static_cast<unsigned>(block.scale[g] + 32);
      set_bits(dst[96 + g % 8], s & 15u, g < 8 ? 0 : 4);
      set_bits(dst[104 + g % 4], s >> 4, static_cast<int>(g / 4 * 2));
    }
    for (std::size_t i = 0; i < kBlock; ++i) {
      set_bits(dst[32 + two_bit_byte(i)], block.codes[i] & 3u, two_bit_shift(i));
      set_bits(dst[i % 32], block.codes[i] >> 2u, static_cast<int>(i / 32));
    }
  }
}

void encode_q4_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  encode_q45_k(src, n_blocks, dst, false);
}

void encode_q5_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  encode_q45_k(src, n_blocks, dst, true);
}

void encode_q6_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst) {
  for (std::int64_t b = 0; b < n_blocks; ++b, src += kBlock, dst += 210) {
    const SymmetricBlock block(src, 32, 128);
    std::fill(dst, dst + 210, std::uint8_t{0});
    store_half(dst + 208, block.d.bits);
    for (std::size_t g = 0; g < 16; ++g)
      dst[192 + g] = static_cast<std::uint8_t>(static_cast<std::int8_t>(block.scale[g]));
    for (std::size_t i = 0; i < kBlock; ++i) {
      const std::size_t half = i / 128, run = i % 128 / 32;
      set_bits(dst[half * 64 + run % 2 * 32 + i % 32], block.codes[i] & 15u,
               static_cast<int>(run / 2 * 4));
      set_bits(dst[128 + half * 32 + i % 32], block.codes[i] >> 4u, static_cast<int>(run * 2));
    }
  }
}

}  // namespace lk
