// Prefix tuning: in every layer n trainable keys and values stand in front of each document, which no
// token of the text writes. Source: Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for
// Generation", 2021; computed and stored as PEFT's PREFIX_TUNING: the text's positions begin at n,
// and the prefix has none, as its keys are not rotated.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "methods/method_file.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

struct PrefixSettings {
  std::int64_t virtual_tokens = 20;  // n
  // > 0: keys and values are an MLP of this hidden size of n trainable vectors that all layers share,
  // K_l, V_l = W_l tanh(W e + b) + b_l. What it makes of them is what a file holds.
  std::int64_t hidden_size = 0;
  std::uint64_t seed = 0;
};

class PrefixTuning final : public Method {
 public:
  // Takes the attention's place in every layer of `model`, which must outlive the method. Throws
  // UsageError, and leaves the model as it was, if one is taken, for no virtual tokens, and where
  // the model has no positions left for the text.
  PrefixTuning(Transformer& model, const PrefixSettings& settings);
  ~PrefixTuning() override;
  PrefixTuning(const PrefixTuning&) = delete;
  PrefixTuning& operator=(const PrefixTuning&) = delete;

  std::string name() const override { return "prefix"; }
  std::vector<Parameter*> parameters() const override;
  std::int64_t weight_gradients() const override;
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void save(const std::string& folder, const BaseIdentity& base) const override;
  // Gives the keys and values of all layers, as a file holds them: rows of n virtual tokens, each
  // with K and V of layer 0, of layer 1, ... Only without an MLP.
  void set_prefix(const std::vector<float>& values);

 private:
  class Layer;
  struct Encoder;
  Transformer& model_;
  std::int64_t n_;
  std::unique_ptr<Encoder> encoder_;  // null without an MLP
  std::vector<std::unique_ptr<Layer>> layers_;
};

// Opens a folder with peft_type PREFIX_TUNING. Throws InputError naming file and key.
std::unique_ptr<MethodFile> open_prefix_tuning(const std::string& folder);

}  // namespace lk
