// KvCache: keys and values of one sequence, so that a new token attends to all earlier ones.
#pragma once

#include <vector>

#include "nn/config.h"
#include "tensor/backend.h"

namespace lk {

class KvCache {
 public:
  // Room for `capacity` tokens in every layer: 2 * n_layers * capacity * G * D elements.
  KvCache(Backend& backend, const ModelConfig& config, DType dtype, std::int64_t capacity) {
    for (std::int64_t i = 0; i < config.n_layers; ++i) {
      Shape shape{capacity, config.n_kv_heads * config.head_dim};
      layers_.push_back(
          {backend.empty(Tag::KvCache, dtype, shape), backend.empty(Tag::KvCache, dtype, shape)});
    }
    capacity_ = capacity;
  }
  struct Layer {
    Tensor k, v;  // (capacity, G*D)
  };
  Layer& layer(std::size_t i) { return layers_[i]; }
  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  void advance(std::int64_t n) { length_ += n; }
  void clear() { length_ = 0; }

 private:
  std::vector<Layer> layers_;
  std::int64_t length_ = 0, capacity_ = 0;
};

}  // namespace lk
