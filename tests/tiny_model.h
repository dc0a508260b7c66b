// A tiny random LLaMA, its relatives of the other families, and rows of random tokens, for tests of
// training and generation.
#pragma once

#include <random>

#include "harness.h"
#include "lora/adapter.h"
#include "modelfile/family_files.h"
#include "nn/transformer.h"

namespace lk::test {

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.architecture = "llama";
  c.vocab_size = 61;
  c.hidden_size = 24;
  c.intermediate_size = 40;
  c.n_layers = 2;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 8;  // H * D is not C
  c.rms_eps = 1e-5;
  c.rope_theta = 10000;
  c.max_position = 256;
  return c;
}

// The families with everything in which each of them differs: windows of 8 tokens, local layers
// with angles of their own, biases.
inline const std::vector<std::string> kFamilies = {"llama", "mistral",     "qwen2",
                                                   "qwen3", "gemma3_text", "gpt2"};

inline ModelConfig as_family(ModelConfig c, const std::string& name) {
  const Family& f = *find_family(name);
  apply_family(c, f);
  c.attention_bias = files_of(f).biased_qkv;
  if (name == "mistral" || name == "gemma3_text") {
    c.window = 8;
    for (std::int64_t i = 0; i < c.n_layers; ++i)
      c.local.push_back(name == "mistral" || i % 2 == 0);
  }
  if (name == "gemma3_text") {
    c.local_rope_theta = 700;
    c.query_scale = 17;
    c.tie_embeddings = true;
  }
  if (name == "gpt2") {
    c.n_kv_heads = c.n_heads;
    c.head_dim = c.hidden_size / c.n_heads;
    c.attention_bias = c.attention_output_bias = c.mlp_bias = true;
    c.tie_embeddings = true;
  }
  return c;
}

inline std::unique_ptr<Transformer> tiny_transformer(Backend& backend, DType dtype,
                                                     unsigned seed = 7,
                                                     const std::string& family = "llama") {
  ModelConfig c = as_family(tiny_config(), family);
  return std::make_unique<Transformer>(backend, c, random_weights(backend, c, dtype, seed), dtype,
                                       256);
}

// Rows of the given lengths; the first third of each row is a prompt, the rest is supervised.
inline std::vector<Row> random_rows(const std::vector<int>& lengths, unsigned seed,
                                    std::int64_t vocab = 61) {
  std::mt19937 rng(seed);
  std::vector<Row> rows;
  for (int n : lengths) {
    Row row;
    for (int i = 0; i < n; ++i) {
      row.ids.push_back(static_cast<std::int32_t>(rng() % static_cast<unsigned>(vocab)));
      row.supervised.push_back(i >= n / 3);
    }
    row.line = rows.size() + 1;
    rows.push_back(std::move(row));
  }
  return rows;
}

inline std::vector<const Row*> pointers(const std::vector<Row>& rows, std::size_t begin = 0,
                                        std::size_t end = SIZE_MAX) {
  std::vector<const Row*> p;
  for (std::size_t i = begin; i < std::min(end, rows.size()); ++i) p.push_back(&rows[i]);
  return p;
}

inline LoraConfig tiny_lora(std::vector<std::string> targets = {"all-linear"}) {
  LoraConfig c;
  c.shape = {4, 8, 0};
  c.targets = std::move(targets);
  c.seed = 3;
  return c;
}

// Puts random values into every B, so that the adapter changes something.
inline void randomize_b(Adapter& adapter, unsigned seed, double scale = 0.05) {
  for (LoraLinear* layer : adapter.layers()) {
    const Tensor& b = layer->b().value();
    Tensor values = random_tensor(b.backend(), b.dtype(), b.shape(), seed++, scale);
    b.backend().copy(b, values);
    layer->b().refresh();
  }
}

}  // namespace lk::test
