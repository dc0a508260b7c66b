// Prompt tuning: n trainable vectors stand in front of each document, embedded as its own tokens are.
// Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021; computed and
// stored as PEFT's PROMPT_TUNING.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "methods/method_file.h"
#include "nn/method.h"
#include "nn/places.h"
#include "nn/transformer.h"

namespace lk {

struct PromptSettings {
  std::int64_t virtual_tokens = 20;
  // Tokens whose embeddings the vectors start as, repeated or cut; empty: N(0, 1).
  std::vector<std::int32_t> text = {};
  std::uint64_t seed = 0;
};

class PromptTuning final : public Method, private InputPlace {
 public:
  // Takes the place before the blocks of `model`, which must outlive the method. Throws UsageError,
  // and leaves the model as it was, if that is taken, or for no virtual tokens or a token of the
  // text that the model does not have.
  PromptTuning(Transformer& model, const PromptSettings& settings);
  ~PromptTuning() override;
  PromptTuning(const PromptTuning&) = delete;
  PromptTuning& operator=(const PromptTuning&) = delete;

  std::string name() const override { return "prompt"; }
  std::vector<Parameter*> parameters() const override { return {&vectors_}; }
  std::int64_t weight_gradients() const override { return 1; }  // virtual_tokens() sums documents
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void save(const std::string& folder, const BaseIdentity& base) const override;

 private:
  std::int64_t tokens() const override { return vectors_.shape()[0]; }
  Var apply(Tape& tape, const Var& x, const VirtualRows& virtual_rows) override;

  Transformer& model_;
  mutable Parameter vectors_;  // (n, C)
};

// Opens a folder with peft_type PROMPT_TUNING. Throws InputError naming file and key.
std::unique_ptr<MethodFile> open_prompt_tuning(const std::string& folder);

}  // namespace lk
