// Bottleneck adapters: small networks behind the sublayers of each block. With x the residual stream
// before a sublayer and h what the sublayer made of it,
//   x + h + s up(act(down(v))),   v = h + x (Pfeiffer), h (Houlsby) or x (parallel)
// Sources: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019; Pfeiffer et al.,
// "AdapterFusion", 2021; He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning",
// 2022. Files, formulas and initial values as adapter-hub's `adapters` 1.3 has them.
//
// They can't be merged: act stands between the two matrices, so no matrix of the base could do what
// they do, and every generated token pays for them.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "methods/method_file.h"
#include "methods/stored_parameters.h"
#include "nn/places.h"

namespace lk {

struct BottleneckConfig {
  enum class Input : std::uint8_t { Sum, Sublayer, Residual };  // v: h + x, h, x
  enum class Init : std::uint8_t {
    Bert,     // N(0, 0.02^2); the model is not the base at step 0
    Mam,      // down Kaiming-uniform, up zero
    Houlsby,  // N(0, 0.01^2) cut at two deviations
  };
  Input input = Input::Sum;
  bool after_attention = false, after_mlp = true;
  Activation activation = Activation::Relu;
  double scale = 1;
  Init init = Init::Bert;
  float dropout = 0;  // of what is added
  // Rows of down, for each layer; 0: none there. Of one element: the same for all layers.
  std::vector<std::int64_t> sizes = {64};
  std::uint64_t seed = 0;

  // "pfeiffer", "houlsby" or "parallel", with that many rows. Throws UsageError for another kind.
  static BottleneckConfig of_kind(const std::string& kind, std::int64_t size);
  std::int64_t size_of(std::size_t layer) const {
    return sizes.size() == 1 ? sizes[0] : layer < sizes.size() ? sizes[layer] : 0;
  }
};

class Bottleneck : public Method {
 public:
  // Throws UsageError for a setting out of its range, and if a place is taken.
  Bottleneck(Transformer& model, BottleneckConfig config);
  ~Bottleneck() override;
  Bottleneck(const Bottleneck&) = delete;
  Bottleneck& operator=(const Bottleneck&) = delete;

  std::string name() const override { return "bottleneck"; }
  std::vector<Parameter*> parameters() const override;
  std::vector<Parameter*> first_to_move() const override;  // up, whose input is not zero
  std::int64_t weight_gradients() const override { return 4 * std::ssize(units_); }
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void save(const std::string& folder, const BaseIdentity& base) const override;
  const BottleneckConfig& config() const { return config_; }
  // The parameters as tensors of a file of the adapter `name`.
  std::vector<StoredParameter> stored(const std::string& name) const;

 private:
  class Unit;
  Transformer& model_;
  BottleneckConfig config_;
  std::vector<std::unique_ptr<Unit>> units_;
};

class BottleneckFile : public MethodFile {
 public:
  // Reads adapter_config.json and checks every key. Throws InputError: also for pytorch_adapter.bin,
  // which is a pickle.
  explicit BottleneckFile(const std::string& folder);
  // Whether an adapter_config.json is one of adapter-hub's.
  static bool recognises(const Json& config);
  std::string method() const override { return "bottleneck"; }
  BaseIdentity base() const override { return base_; }
  std::string summary() const override;
  std::unique_ptr<Method> attach(Transformer& model) const override;

 private:
  std::string folder_, name_;
  BaseIdentity base_;
  std::int64_t hidden_size_ = 0;
  BottleneckConfig config_;
};

}  // namespace lk
