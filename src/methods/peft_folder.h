// The two files in which PEFT keeps a method other than LoRA: adapter_config.json and
// adapter_model.safetensors.
//
// A key of the config that changes what the method computes is obeyed or refused by name, as Note
// [Obey or refuse] in lora/peft_config.h says: what nobody reads must be off.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "io/safetensors.h"
#include "nn/method.h"

namespace lk {

// What prompt and prefix tuning train: the tensor's name in their files, and its most rows.
inline constexpr const char* kPromptEmbeddings = "prompt_embeddings";
inline constexpr std::int64_t kMostVirtualTokens = 65536;

class PeftFolder {
 public:
  // Reads the config and the header of the weights. `obeyed` are the keys that the caller reads, and
  // `harmless` those that change nothing of its method, besides what is harmless for every one.
  // Throws InputError naming file and key: another peft_type, a key that is neither and not off, a
  // pickle instead of safetensors.
  PeftFolder(const std::string& folder, const std::string& peft_type,
             const std::vector<std::string_view>& obeyed,
             const std::vector<std::string_view>& harmless);

  const Json& config() const { return config_; }
  const std::string& config_path() const { return config_path_; }
  const std::string& weights_path() const { return weights_.path(); }
  BaseIdentity base() const { return base_; }
  std::vector<std::string> tensors() const { return weights_.names(); }
  Shape shape(const std::string& tensor) const { return weights_.shape(tensor); }
  // Throws InputError if the file has other tensors, or one of another shape, or a number that is
  // not finite.
  void expect(const std::vector<std::pair<std::string, Shape>>& tensors) const;
  std::vector<float> read(const std::string& tensor) const;

 private:
  std::string config_path_;
  Json config_;
  SafetensorsFile weights_;
  BaseIdentity base_;
};

// Writes both files durably and reads them back; `config` gets what every method's config has.
// Throws IoError, NonFiniteError.
void write_peft_folder(const std::string& folder, Json config, const BaseIdentity& base,
                       const std::vector<SafetensorsEntry>& tensors);

}  // namespace lk
