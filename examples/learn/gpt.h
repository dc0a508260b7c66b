// What 05_micro_gpt stands on: texts as bytes, GPT-2's maths in any size, and how trained weights
// become a frozen base.
#pragma once

#include <fstream>
#include <iterator>

#include "methods/full.h"
#include "nn/family.h"
#include "text/row.h"

namespace learn {

// A file in rows of `tokens` bytes. Each byte is a token, and each but a row's first is predicted.
inline std::vector<lk::Row> rows_of(const std::string& path, std::size_t tokens) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<lk::Row> rows;
  for (std::size_t i = 0; i + tokens <= text.size() && rows.size() < 2000; i += tokens) {
    rows.push_back({.ids = {}, .supervised = std::vector<std::uint8_t>(tokens, 1)});
    for (char c : text.substr(i, tokens)) rows.back().ids.push_back(c & 127);
  }
  lk::check(rows.size() > 16, path, ": no text here");
  return rows;
}

inline lk::ModelConfig gpt(std::int64_t vocab, std::int64_t width, std::int64_t layers,
                           std::int64_t positions) {
  lk::ModelConfig c;
  lk::apply_family(c, *lk::find_family("gpt2"));
  c.vocab_size = vocab, c.hidden_size = width, c.intermediate_size = 4 * width;
  c.n_layers = layers, c.max_position = positions;
  c.n_heads = c.n_kv_heads = 4, c.head_dim = width / 4;
  c.rms_eps = 1e-5;
  c.attention_bias = c.attention_output_bias = c.mlp_bias = true;
  c.tie_embeddings = true;
  return c;
}

// The values that `full` has trained, as weights that nothing can train.
inline lk::ModelWeights frozen_copy(lk::Backend& backend, const lk::ModelConfig& config,
                                    const lk::Full& full) {
  lk::ModelWeights weights;
  for (lk::WeightSlot& slot : lk::weight_slots(config, weights)) {
    lk::Tensor values = backend.empty(lk::Tag::Weights, lk::DType::F32, slot.shape);
    backend.copy(values, full.at(slot.name).value());
    *slot.weight = lk::Weight(slot.name, values);
  }
  lk::tie_head(backend, weights);
  return weights;
}

}  // namespace learn
