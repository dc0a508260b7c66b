// Adapter: all LoraLinears of a model, placed by targets.
#pragma once

#include <string>
#include <vector>

#include "lora/lora_config.h"
#include "lora/lora_linear.h"
#include "nn/method.h"
#include "nn/transformer.h"

namespace lk {

class Adapter : public Method {
 public:
  // Wraps every targeted projection of `model`, which must outlive the adapter. Throws UsageError,
  // and leaves the model as it was, if a target matches nothing (naming what there is), a layer is
  // not one of the model's, a rank is below 1 or, without wide_ranks, above what its module has a
  // use for, alpha or dropout is out of its range, an exception names no module, or a projection
  // carries an adapter already. OutOfMemoryError if A and B, or what an init leaves of the base, find
  // no room: the model is then as it was.
  Adapter(Transformer& model, const LoraConfig& config);
  // Takes A and B off: the model is the frozen base again. End a Trainer of this adapter first.
  ~Adapter() override;
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  const LoraConfig& config() const { return config_; }
  const ModelConfig& model_config() const { return model_.config(); }
  const std::vector<LoraLinear*>& layers() const { return layers_; }

  std::string name() const override { return "lora"; }
  // A, B and, with DoRA, the magnitude of every layer, in running order.
  std::vector<Parameter*> parameters() const override;
  std::vector<Parameter*> first_to_move() const override;  // B of every layer
  std::int64_t weight_gradients() const override { return std::ssize(parameters()); }
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
  void take_off() noexcept;

  Transformer& model_;
  LoraConfig config_;
  std::vector<LoraLinear*> layers_;
  std::vector<std::unique_ptr<LinearMap>*> places_;  // in the model, of each layer
};

}  // namespace lk
