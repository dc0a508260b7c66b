// Tensors of given or of random values: inputs for checks such as gradcheck.
#pragma once

#include <random>
#include <vector>

#include "tensor/backend.h"

namespace lk {

// Standard-normal values (times `scale`), rounded to the dtype, so that a reference computed from
// the stored values differs from an implementation by arithmetic only.
inline std::vector<double> random_values(std::int64_t n, unsigned seed, double scale = 1.0) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<double> v(static_cast<std::size_t>(n));
  for (double& x : v) x = normal(rng);
  return v;
}

// Uploads doubles as a tensor of any floating dtype.
inline Tensor tensor_from(Backend& backend, DType dtype, Shape shape,
                          const std::vector<double>& values, Tag tag = Tag::Workspace) {
  require(is_float(dtype), "tensor_from: ", dtype_name(dtype), " is no floating dtype");
  require(std::ssize(values) == shape.numel(), "tensor_from: ", values.size(),
          " values for a shape of ", shape.numel());
  Tensor t = backend.empty(tag, dtype, shape);
  dispatch_float(dtype, [&]<class T>() {
    std::vector<T> raw(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if constexpr (std::is_same_v<T, bf16>)
        raw[i] = bf16(static_cast<float>(values[i]));
      else
        raw[i] = static_cast<T>(values[i]);
    }
    backend.upload(t, raw.data(), raw.size() * sizeof(T));
  });
  return t;
}

inline Tensor random_tensor(Backend& backend, DType dtype, Shape shape, unsigned seed,
                            double scale = 1.0) {
  return tensor_from(backend, dtype, shape, random_values(shape.numel(), seed, scale));
}

}  // namespace lk
