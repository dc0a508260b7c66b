// Rotary angles. Source: Su et al., "RoFormer", 2021; the scalings as transformers defines them.
#include <cmath>
#include <vector>

#include "nn/config.h"

namespace lk {
namespace {

// Llama 3.1's rule: wavelengths beyond the old context are stretched by `factor`, short ones are
// kept, and those between are blended. Every operation is float32, in transformers' order.
float llama3_frequency(float frequency, const RopeScaling& s) {
  const float factor = static_cast<float>(s.factor);
  const double context = static_cast<double>(s.original_max_position);
  const float wavelength = 6.283185307179586f / frequency;
  if (wavelength > static_cast<float>(context / s.low_freq_factor)) return frequency / factor;
  if (wavelength < static_cast<float>(context / s.high_freq_factor)) return frequency;
  const float span = static_cast<float>(s.high_freq_factor - s.low_freq_factor);
  const float smooth =
      (static_cast<float>(context) / wavelength - static_cast<float>(s.low_freq_factor)) / span;
  // volatile: -ffp-contract=fast would fuse the sum, with one rounding less than the definition.
  const volatile float stretched = (1.0f - smooth) * frequency / factor;
  const volatile float kept = smooth * frequency;
  return stretched + kept;
}

}  // namespace

std::vector<double> local_inverse_frequencies(const ModelConfig& c) {
  if (c.local_rope_theta == 0) return inverse_frequencies(c);
  ModelConfig local = c;
  local.rope_theta = c.local_rope_theta;
  local.rope_scaling = {};
  return inverse_frequencies(local);
}

std::vector<double> inverse_frequencies(const ModelConfig& c) {
  const std::size_t half = static_cast<std::size_t>(c.head_dim / 2);
  std::vector<double> frequencies(half);
  for (std::size_t i = 0; i < half; ++i) {
    float exponent = static_cast<float>(2 * i) / static_cast<float>(c.head_dim);
    float power = static_cast<float>(std::pow(static_cast<double>(static_cast<float>(c.rope_theta)),
                                              static_cast<double>(exponent)));
    float f = 1.0f / power;
    switch (c.rope_scaling.kind) {
      case RopeScaling::Kind::None:
        break;
      case RopeScaling::Kind::Linear:
        f /= static_cast<float>(c.rope_scaling.factor);
        break;
      case RopeScaling::Kind::Llama3:
        f = llama3_frequency(f, c.rope_scaling);
        break;
      case RopeScaling::Kind::Factors:
        f /= c.rope_scaling.factors[i];
        break;
    }
    frequencies[i] = f;
  }
  return frequencies;
}

Tensor rope_table(Backend& backend, const ModelConfig& c, std::int64_t n_positions, DType dtype) {
  return rope_table(backend, inverse_frequencies(c), n_positions, dtype);
}

Tensor rope_table(Backend& backend, const std::vector<double>& frequencies,
                  std::int64_t n_positions, DType dtype) {
  check(dtype == DType::F32 || dtype == DType::F64, "rope_table: dtype ", dtype_name(dtype));
  check(n_positions > 0, "rope_table: ", n_positions, " positions");
  const std::size_t half = frequencies.size();
  const std::int64_t D = static_cast<std::int64_t>(2 * half);
  Tensor table = backend.empty(Tag::Weights, dtype, {n_positions, D});
  dispatch_float(dtype, [&]<class T>() {
    backend.upload_made(table, static_cast<std::size_t>(D) * sizeof(T),
                        [&](std::int64_t first, std::int64_t last, std::byte* to) {
                          T* row = reinterpret_cast<T*>(to);
                          for (std::int64_t p = first; p < last; ++p, row += D)
                            for (std::size_t i = 0; i < half; ++i) {
                              const double angle =
                                  static_cast<float>(p) * static_cast<float>(frequencies[i]);
                              row[i] = static_cast<T>(std::cos(angle));
                              row[half + i] = static_cast<T>(std::sin(angle));
                            }
                        });
  });
  return table;
}

}  // namespace lk
