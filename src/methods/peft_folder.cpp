#include "methods/peft_folder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/config_keys.h"
#include "io/durable.h"
#include "io/output_folder.h"
#include "io/paths.h"
#include "io/printable.h"
#include "modelfile/base_identity.h"

namespace lk {
namespace {

constexpr const char *kConfig = "adapter_config.json", *kWeights = "adapter_model.safetensors";
constexpr std::size_t kMostConfigBytes = std::size_t{16} << 20;

// What changes nothing that any method computes.
constexpr std::string_view kHarmless[] = {"auto_mapping", "inference_mode", "peft_version",
                                          "revision",     "runtime_config", "task_type"};
constexpr std::string_view kObeyed[] = {"base_model_name_or_path", kBaseFingerprint, "peft_type"};

std::string checked_weights(const std::string& folder) {
  if (!exists(folder + "/" + kWeights) && exists(folder + "/adapter_model.bin"))
    throw InputError(folder +
                     "/adapter_model.bin: pickle files can run code and are never read; save the "
                     "adapter as safetensors");
  return folder + "/" + kWeights;
}

}  // namespace

PeftFolder::PeftFolder(const std::string& folder, const std::string& peft_type,
                       const std::vector<std::string_view>& obeyed,
                       const std::vector<std::string_view>& harmless)
    : config_path_(folder + "/" + kConfig),
      config_(parse_json(read_json_text(config_path_, kMostConfigBytes), config_path_)),
      weights_(checked_weights(folder)) {
  if (!config_.is_object()) throw InputError(config_path_ + ": not a JSON object");
  if (const std::string type = json_string(config_, "peft_type", config_path_); type != peft_type)
    throw InputError(
        concat(config_path_, ": peft_type ", printable(type), ", expected ", peft_type));
  if (const auto unknown = unknown_key(config_, {kObeyed, kHarmless, obeyed, harmless})) {
    const std::string name = printable(unknown->key);
    throw InputError(concat(config_path_, ": ", name.substr(1, name.size() - 2), " = ",
                            unknown->value, " is not supported with ", peft_type));
  }
  base_.name = config_.value("base_model_name_or_path", Json()).is_null()
                   ? ""
                   : json_string(config_, "base_model_name_or_path", config_path_);
  base_.fingerprint = json_string_or(config_, kBaseFingerprint, "", config_path_);
  read_base_metadata(base_, weights_.metadata(), weights_.path());
}

void PeftFolder::expect(const std::vector<std::pair<std::string, Shape>>& tensors) const {
  const std::vector<std::string> names = weights_.names();
  for (const std::string& name : names)
    if (std::none_of(tensors.begin(), tensors.end(),
                     [&](const auto& tensor) { return tensor.first == name; }))
      throw InputError(concat(weights_path(), ": tensor ", printable(name), " is not known"));
  for (const auto& [name, shape] : tensors) {
    if (!weights_.has(name)) throw InputError(concat(weights_path(), ": no tensor ", name));
    if (!(weights_.shape(name) == shape))
      throw InputError(concat(weights_path(), ": ", name, " has shape ", weights_.shape(name),
                              ", the config and the model ask for ", shape));
    for (float value : read(name))
      if (!std::isfinite(value))
        throw InputError(concat(weights_path(), ": ", name, " holds a number that is not finite"));
  }
}

std::vector<float> PeftFolder::read(const std::string& tensor) const {
  const Shape shape = weights_.shape(tensor);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  weights_.read_rows(tensor, 0, shape.rows(), values.data());
  return values;
}

void write_peft_folder(const std::string& folder, Json config, const BaseIdentity& base,
                       const std::vector<SafetensorsEntry>& tensors) {
  const std::string weights = folder + "/" + kWeights, path = folder + "/" + kConfig;
  make_folders(folder);
  write_safetensors(weights, tensors, base_metadata(base));
  config.update({{"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", base.name},
                 {"inference_mode", true},
                 {"auto_mapping", nullptr},
                 {"revision", nullptr}});
  write_file_durably(path, json_text(config, 2) + "\n");
  // Nothing is claimed until the files say what the memory says.
  const SafetensorsFile back(weights);
  if (back.names().size() != tensors.size())
    throw IoError(
        concat(weights, ": read back ", back.names().size(), " tensors, wrote ", tensors.size()));
  for (const SafetensorsEntry& t : tensors) {
    std::vector<float> values(t.values.size());
    back.read_rows(t.name, 0, t.shape.rows(), values.data());
    if (std::memcmp(values.data(), t.values.data(), values.size() * sizeof(float)) != 0)
      throw IoError(concat(weights, ": ", t.name, " read back differently"));
  }
  if (parse_json(read_json_text(path, kMostConfigBytes), path) != config)
    throw IoError(path + ": read back differently from what was written");
}

}  // namespace lk
