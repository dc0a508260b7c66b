// Method: a way to train a frozen model. It owns what trains and has taken places in the model: of
// its projections (nn/linear_map.h), or of those in nn/places.h. When it ends the model is the frozen
// base again, unless it replaces_base().
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "autograd/parameter.h"

namespace lk {

// The model that a method was trained on, as its files name it.
struct BaseIdentity {
  std::string name;         // on the hub, or a path
  std::string fingerprint;  // SHA-256 (modelfile/fingerprint.h)
  // "nf4", "fp4", "fp8" and the modules that stayed dense, where it was quantised as it was loaded
  // (modelfile/base_precision.h); empty where its numbers were its file's.
  std::string precision = {};
  std::vector<std::string> keep_dense = {};
};

class Method {
 public:
  virtual ~Method() = default;
  // As --method calls it: "lora".
  virtual std::string name() const = 0;
  // Everything that trains, distinct, in an order that never changes.
  virtual std::vector<Parameter*> parameters() const = 0;
  // Those of the parameters that the first step moves already (LoRA's B, while A waits for it).
  virtual std::vector<Parameter*> first_to_move() const { return parameters(); }
  // Products that contract over tokens (Backend::weight_gradient) in a micro-batch's backward.
  virtual std::int64_t weight_gradients() const = 0;
  // Such products besides, with the chunks of a head that trains, of so many supervised tokens.
  virtual std::int64_t head_gradients(std::int64_t /*supervised*/) const { return 0; }
  // Whether the base is gone: its weights themselves train. Such a method can't be disabled, and
  // leaves the model with what they have become.
  virtual bool replaces_base() const { return false; }
  // Bytes of the parameters' copies in the compute dtype, as the ledger counts them.
  virtual std::int64_t copy_bytes() const;
  // Disabled, the model computes as if the method were not there.
  virtual void set_enabled(bool enabled) = 0;
  // What a person should know of it, by name: {"rank", "16"}, ...
  virtual std::vector<std::pair<std::string, std::string>> facts() const = 0;
  // Arranges the model's memory as this device trains the method fastest. Call it once, before an
  // optimizer is made: parameters' copies may move.
  virtual void lay_out_for_training() {}
  // Writes the method's files into `folder`, durably, and reads them back. Throws IoError,
  // NonFiniteError.
  virtual void save(const std::string& folder, const BaseIdentity& base) const = 0;

  std::int64_t n_parameters() const;
  void zero_grad();
};

}  // namespace lk
