// Full fine-tuning: every weight of the model trains, which is what LoRA does without. The method
// that the others are measured against, for models that fit: each parameter takes 16 bytes, of its
// master, its gradient and AdamW's two moments in F32 (and 2 of a BF16 copy), before any activation.
//
// It trains by type: each Weight becomes a Parameter, with an F32 master, and the products that
// compute gradients of weights exist in the nodes of those Parameters only. The memory of the frozen
// weights is released; in their place stand views of the Parameters' copies, which all that only
// reads the model goes on with: evaluation, generation.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "modelfile/model_file.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

class Full : public Method {
 public:
  // `base`: the file that the model was read from, whose config, tokenizer and dtypes a saved model
  // has; null for a method that is never saved. Throws UsageError if another method is there.
  Full(Transformer& model, std::shared_ptr<const ModelFile> base);
  ~Full() override;  // the model is frozen again, with its trained values
  Full(const Full&) = delete;
  Full& operator=(const Full&) = delete;

  std::string name() const override { return "full"; }
  std::vector<Parameter*> parameters() const override;
  // One for each parameter; those of the head depend on the batch.
  std::int64_t weight_gradients() const override;
  std::int64_t head_gradients(std::int64_t supervised) const override;
  bool replaces_base() const override { return true; }
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  // A model folder, as Hugging Face's: config.json, model.safetensors in the base's dtype (F32 where
  // the base is quantised), tokenizer.
  void save(const std::string& folder, const BaseIdentity& base) const override;
  // By the name of its tensor in Hugging Face's model: "model.norm.weight". Norms hold the factor
  // itself, also where files have it less 1 (Gemma).
  Parameter& at(const std::string& name) const { return *by_name_.at(name); }

 private:
  Transformer& model_;
  std::shared_ptr<const ModelFile> base_;
  std::vector<std::unique_ptr<Parameter>> parameters_;  // in the order of weight_slots()
  std::map<std::string, Parameter*> by_name_;
};

}  // namespace lk
