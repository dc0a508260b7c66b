// New parameters, as torch initialises the same modules. The draws differ from torch's;
// they are Philox's, keyed by (seed, site), and the same on every device.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "autograd/parameter.h"

namespace lk {

// Gives a parameter values from the host.
inline void set_values(Parameter& p, const std::vector<float>& values) {
  const Tensor& t = p.value();
  if (t.dtype() == DType::F64) {
    const std::vector<double> wide(values.begin(), values.end());
    t.backend().upload(t, wide.data(), wide.size() * sizeof(double));
  } else {
    t.backend().upload(t, values.data(), values.size() * sizeof(float));
  }
  p.refresh();
}

// step = 2^40 - 1 keeps the initialisation's draws apart from those of every dropout mask.
inline RandomKey initial_key(std::uint64_t seed, std::uint32_t site) {
  return {seed, (std::uint64_t{1} << 40) - 1, site};
}

// A parameter with these values.
inline Parameter parameter_of(Backend& backend, DType compute_dtype, std::string name, Shape shape,
                              const std::vector<float>& values) {
  check(std::ssize(values) == shape.numel(), name, ": ", values.size(), " values for ", shape);
  Parameter p(std::move(name), backend.empty(Tag::Params, stat_dtype(compute_dtype), shape),
              compute_dtype);
  set_values(p, values);
  return p;
}

// n numbers of N(0, 1), by Box and Muller's method from two uniform numbers of 32 bits each.
inline std::vector<float> normal_values(std::int64_t n, std::uint64_t seed, std::uint32_t site) {
  constexpr double kTwoPi = 6.283185307179586;
  std::vector<float> values(static_cast<std::size_t>(n));
  const RandomKey key = initial_key(seed, site);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Philox4 bits = philox_at(key, i / 2);
    const double u = (bits.v[0] + 1.0) * 0x1p-32, angle = kTwoPi * bits.v[1] * 0x1p-32;
    const double radius = std::sqrt(-2 * std::log(u));
    values[i] = static_cast<float>(radius * (i % 2 ? std::sin(angle) : std::cos(angle)));
  }
  return values;
}

// N(0, 1): nn.Embedding.
inline Parameter normal_parameter(Backend& backend, DType compute_dtype, std::string name,
                                  Shape shape, std::uint64_t seed, std::uint32_t site) {
  return parameter_of(backend, compute_dtype, std::move(name), shape,
                      normal_values(shape.numel(), seed, site));
}

// U(-1/sqrt(in), 1/sqrt(in)): weight and bias of a nn.Linear with `in` inputs.
inline Parameter linear_parameter(Backend& backend, DType compute_dtype, std::string name,
                                  Shape shape, std::int64_t in, std::uint64_t seed,
                                  std::uint32_t site) {
  const Tensor t = backend.empty(Tag::Params, stat_dtype(compute_dtype), shape);
  backend.uniform(t, 1.0f / std::sqrt(static_cast<float>(in)), initial_key(seed, site));
  return Parameter(std::move(name), t, compute_dtype);
}

}  // namespace lk
