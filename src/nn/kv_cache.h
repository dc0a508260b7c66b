// KvCache: keys and values of several sequences, so that a new token can attend to all earlier
// ones. Each sequence has a slot: `capacity` adjacent rows of one matrix per layer.
#pragma once

#include <vector>

#include "nn/config.h"
#include "tensor/backend.h"

namespace lk {

class KvCache {
 public:
  // Room for `slots` sequences of `capacity` tokens: 2 * n_layers * slots * capacity * G * D
  // elements.
  KvCache(Backend& backend, const ModelConfig& config, DType dtype, std::int64_t capacity,
          std::int64_t slots = 1)
      : backend_(backend), capacity_(capacity), lengths_(static_cast<std::size_t>(slots)) {
    check(capacity > 0 && slots > 0 && capacity <= INT32_MAX / slots, "KV cache: ", slots,
          " slots of ", capacity, " tokens");
    for (std::int64_t i = 0; i < config.n_layers; ++i) {
      Shape shape{slots * capacity, config.n_kv_heads * config.head_dim};
      layers_.push_back(
          {backend.empty(Tag::KvCache, dtype, shape), backend.empty(Tag::KvCache, dtype, shape)});
    }
  }
  struct Layer {
    Tensor k, v;  // (slots * capacity, G*D)
  };
  Backend& backend() const { return backend_; }
  const Layer& layer(std::size_t i) const { return layers_[i]; }
  std::int64_t slots() const { return static_cast<std::int64_t>(lengths_.size()); }
  std::int64_t capacity() const { return capacity_; }
  // Number of tokens in a slot. Setting a smaller length forgets the tokens after it.
  std::int64_t length(std::int64_t slot) const { return lengths_.at(index(slot)); }
  void set_length(std::int64_t slot, std::int64_t n) {
    check(0 <= n && n <= capacity_, "KV cache: ", n, " tokens, room for ", capacity_);
    lengths_.at(index(slot)) = n;
  }

 private:
  static std::size_t index(std::int64_t slot) { return static_cast<std::size_t>(slot); }
  Backend& backend_;
  std::vector<Layer> layers_;
  std::int64_t capacity_;
  std::vector<std::int64_t> lengths_;
};

}  // namespace lk
