// BitFit: only biases train. A model with biases of its own (GPT-2) trains all of them, those of its
// norms too; others get new ones, zero at first, on the outputs of some projections, as PEFT's BEFT
// adds them:  y = x wᵀ + bias + b.
// Source: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
// Masked Language-models", 2022.
//
// Its own biases merge exactly: they are the model's. New ones can't be merged where a family's files
// have no place for a bias.
#pragma once

#include <string>
#include <vector>

#include "methods/method_file.h"
#include "methods/projections.h"
#include "methods/stored_parameters.h"

namespace lk {

struct BitfitConfig {
  // Whose outputs get new biases: module names, ends of paths, or "all-linear". Empty: the model's own
  // biases where its family has them everywhere (GPT-2), else PEFT's default, v_proj.
  std::vector<std::string> targets = {};
};

class Bitfit : public ProjectionMethod {
 public:
  // Throws UsageError as find_projections() does, and for targets on a model whose own biases train.
  Bitfit(Transformer& model, BitfitConfig config);
  ~Bitfit() override;

  std::string name() const override { return "bitfit"; }
  std::vector<Parameter*> parameters() const override;
  std::int64_t weight_gradients() const override { return std::ssize(parameters()); }
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  // New biases: PEFT's BEFT files. The model's own: tensors by the names of its state dict, which
  // torch's load_state_dict(strict=False) takes.
  void save(const std::string& folder, const BaseIdentity& base) const override;
  std::vector<StoredParameter> stored() const;
  // Whether the model's own biases train.
  bool own() const { return own_; }

 private:
  struct NormBias {
    NormWeights* norm;
    std::unique_ptr<Parameter> bias;
  };
  BitfitConfig config_;
  bool own_;
  std::vector<NormBias> norms_;
};

// What peft_type is called where a model's own biases train: nothing that PEFT knows.
inline constexpr const char* kOwnBiases = "BITFIT";

// Reads and checks the folder's config and the header of its weights. Throws InputError.
std::unique_ptr<MethodFile> open_bitfit(const std::string& folder);

}  // namespace lk
