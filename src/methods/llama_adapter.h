// LLaMA-Adapter: in the top layers, every token also attends to n trainable vectors, apart from the
// text and through a gate that begins at 0. Source: Zhang et al., "LLaMA-Adapter: Efficient
// Fine-tuning of Language Models with Zero-init Attention", 2023; computed and stored as PEFT's
// ADAPTION_PROMPT, whose gate is one number for each layer.
//
//   y = attention(q, k, v) + gate softmax(q Kᵀ / sqrt(D)) V,   K = W_k P, V = W_v P
//
// with the layer's frozen W_k and W_v, P (n, C), and no positions in K. W_o maps the sum, but in
// GPT-2 the first term alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "methods/method_file.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

struct LlamaAdapterSettings {
  std::int64_t length = 20;  // n
  std::int64_t layers = 0;   // from the top; 0: all but the first two, or all of two
  std::uint64_t seed = 0;
};

class LlamaAdapter final : public Method {
 public:
  // Takes the attention's place in the top layers of `model`, which must outlive the method, and in
  // GPT-2 the place behind it. Throws UsageError, and leaves the model as it was, for a family other
  // than llama, mistral and gpt2, a model whose heads' sizes or biases PEFT computes otherwise,
  // settings out of range, and places that are taken.
  LlamaAdapter(Transformer& model, const LlamaAdapterSettings& settings);
  ~LlamaAdapter() override;
  LlamaAdapter(const LlamaAdapter&) = delete;
  LlamaAdapter& operator=(const LlamaAdapter&) = delete;

  std::string name() const override { return "llama-adapter"; }
  std::vector<Parameter*> parameters() const override;
  std::vector<Parameter*> first_to_move() const override;  // the gates
  std::int64_t weight_gradients() const override { return 0; }
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void save(const std::string& folder, const BaseIdentity& base) const override;

 private:
  class Layer;
  std::size_t first_layer() const;
  Transformer& model_;
  std::vector<std::unique_ptr<Layer>> layers_;  // the top ones, upwards
};

// Opens a folder with peft_type ADAPTION_PROMPT. Throws InputError naming file and key.
std::unique_ptr<MethodFile> open_llama_adapter(const std::string& folder);

}  // namespace lk
