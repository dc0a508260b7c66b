// MethodSet: several methods on one model, trained together. Each has places of its own, so their order
// means nothing to what is computed.
#pragma once

#include <memory>
#include <vector>

#include "nn/method.h"

namespace lk {

// In a folder of several methods: which they are, so that a part that is lost is missed.
// {"methods": ["lora", "prefix"]}
inline constexpr const char* kMethodList = "methods.json";

class MethodSet : public Method {
 public:
  // Two or more methods on one model.
  explicit MethodSet(std::vector<std::unique_ptr<Method>> methods);

  std::string name() const override;  // "lora,prefix"
  std::vector<Parameter*> parameters() const override;
  std::vector<Parameter*> first_to_move() const override;
  std::int64_t weight_gradients() const override;
  std::int64_t copy_bytes() const override;
  void set_enabled(bool enabled) override;
  std::vector<std::pair<std::string, std::string>> facts() const override;
  void lay_out_for_training() override;
  // Each method in a folder of its own, FOLDER/lora, FOLDER/prefix, which can be loaded alone too, and
  // at last FOLDER/methods.json.
  void save(const std::string& folder, const BaseIdentity& base) const override;

 private:
  std::vector<std::unique_ptr<Method>> methods_;
};

}  // namespace lk
