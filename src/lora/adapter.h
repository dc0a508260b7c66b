// Adapter: all LoraLinears of a model, placed by targets.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lora/lora_linear.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

struct RankAlpha {
  std::int64_t rank = 0;
  double alpha = 0;
  bool operator==(const RankAlpha&) const = default;
};

struct LoraConfig {
  LoraShape shape = {};
  // Module names ("q_proj"), ends of paths ("self_attn.q_proj", "layers.3.mlp.up_proj"), or the
  // single word "all-linear": every projection of the blocks, as in PEFT (never the head). Empty:
  // the model's default_targets().
  std::vector<std::string> targets = {};
  std::uint64_t seed = 0;
  // Of modules, by path, whose rank or alpha is not that of `shape`.
  std::map<std::string, RankAlpha> exceptions = {};
  // Takes ranks above a matrix's width too. Such a rank says no more than the width does, but files
  // may have it: what PEFT converts to plain LoRA has twice the rank.
  bool wide_ranks = false;

  LoraShape shape_of(const std::string& path) const;
};

// PEFT's default targets for the family: q_proj and v_proj, or c_attn where q, k and v are one
// projection.
std::vector<std::string> default_targets(const ModelConfig& config);

class Adapter : public Method {
 public:
  // Wraps every targeted projection of `model`, which must outlive the adapter. Throws UsageError,
  // and leaves the model as it was, if a target matches nothing (naming what there is), a rank is
  // below 1 or, without wide_ranks, above min(in, out) of its module, alpha or dropout is out of
  // its range, or a projection carries an adapter already.
  Adapter(Transformer& model, const LoraConfig& config);
  // Takes A and B off: the model is the frozen base again. End a Trainer of this adapter first.
  ~Adapter() override;
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  const LoraConfig& config() const { return config_; }
  const ModelConfig& model_config() const { return model_.config(); }
  const std::vector<LoraLinear*>& layers() const { return layers_; }

  std::string name() const override { return "lora"; }
  // A and B of every layer, in running order.
  std::vector<Parameter*> parameters() const override;
  std::vector<Parameter*> first_to_move() const override;  // B of every layer
  std::int64_t weight_gradients() const override { return 2 * std::ssize(layers_); }
  // Bytes of A's and B's copies in the compute dtype: buffers of their own, or everything next to
  // the weights in joined matrices.
  std::int64_t copy_bytes() const override;
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  // On a GPU, in BF16: projections that share an input move into one buffer with their factors next
  // to them (lora/joined.h). The weights keep their values and get new memory, and the ledger's
  // peaks start anew. Without it, training computes the same function on the plain path.
  void lay_out_for_training() override;
  void save(const std::string& folder, const BaseIdentity& base) const override;

  // The names of the targeted modules, sorted, as adapter_config.json lists them.
  std::vector<std::string> target_modules() const;
  // Paths of the layers whose B is still all zero, that is, untrained.
  std::vector<std::string> untouched() const;

 private:
  Transformer& model_;
  LoraConfig config_;
  std::vector<LoraLinear*> layers_;
  std::vector<std::unique_ptr<LinearMap>*> places_;  // in the model, of each layer
};

// Whether `target` names the module at `path`. PEFT's rule: equal, or a suffix after a dot.
bool target_matches(const std::string& path, const std::string& target);

}  // namespace lk
