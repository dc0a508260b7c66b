// Generation with a KV cache: greedy or sampled.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "nn/transformer.h"

namespace lk {

struct SamplingSettings {
  std::int64_t max_tokens = 128;
  double temperature = 0;  // 0: greedy
  std::int64_t top_k = 0;  // 0: all
  double top_p = 1;        // 1: all
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_ids;
};

// Chooses a token from logits (V). Greedy takes the largest (the lowest id on ties). Otherwise
// softmax of logits / temperature over the top_k largest, of these the smallest set whose
// probability reaches top_p, and a draw keyed by (seed, position): the same settings give the same
// text.
std::int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings,
                          std::int64_t position);

struct Generation {
  std::vector<std::int32_t> ids;  // without the stop token
  bool stopped = false;           // by a stop token, not by max_tokens
  double prefill_seconds = 0, decode_seconds = 0;
};

// Continues `prompt`. `on_token` (may be empty) sees each new id; returning false ends the
// generation. Throws UsageError if the prompt is empty or does not fit the model's positions.
Generation generate(Transformer& model, std::span<const std::int32_t> prompt,
                    const SamplingSettings& settings,
                    const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace lk
