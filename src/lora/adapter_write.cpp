#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

#include "io/checked.h"
#include "io/durable.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "modelfile/family_files.h"

namespace lk {
namespace {

// The shortest decimal that reads back as the same float: 0.1, not 0.10000000149.
double shortest(float value) {
  char decimal[32];
  double result = 0;
  std::from_chars(decimal, std::to_chars(decimal, std::end(decimal), value).ptr, result);
  return result;
}

// A whole alpha is written as one, as PEFT does.
Json number(double alpha) {
  const auto whole = to_integer(alpha, 0, std::int64_t{1} << 50);
  if (whole && static_cast<double>(*whole) == alpha) return *whole;
  return alpha;
}

// The keys of rank_pattern and alpha_pattern with the ranks and alphas that differ from the
// config's own: "v_proj" where all modules of that name share them, a path elsewhere. No module
// matches two keys, so their order means nothing.
std::map<std::string, RankAlpha> pattern_keys(const Adapter& adapter) {
  auto name_of = [](const std::string& path) { return path.substr(path.rfind('.') + 1); };
  auto own = [](const LoraLinear& layer) {
    return RankAlpha{layer.shape().rank, layer.shape().alpha};
  };
  std::map<std::string, RankAlpha> shared;
  std::set<std::string> mixed;  // names whose modules differ
  for (const LoraLinear* layer : adapter.layers()) {
    const std::string name = name_of(layer->path());
    if (!(shared.try_emplace(name, own(*layer)).first->second == own(*layer))) mixed.insert(name);
  }
  std::map<std::string, RankAlpha> keys;
  for (const LoraLinear* layer : adapter.layers()) {
    const std::string name = name_of(layer->path());
    keys[mixed.count(name) ? layer->path() : name] = own(*layer);
  }
  return keys;
}

// Nothing is claimed until the files say what the memory says.
void verify(const std::string& folder, const Adapter& adapter,
            const std::vector<SafetensorsEntry>& tensors) {
  const AdapterFile back = open_adapter(folder);
  for (const LoraLinear* layer : adapter.layers()) {
    const LoraShape want = layer->shape(), have = back.config.shape_of(layer->path());
    if (have.rank != want.rank || have.alpha != want.alpha || have.rslora != want.rslora)
      throw IoError(
          concat(folder, "/", kAdapterConfig, ": read back differently from what was written"));
  }
  const SafetensorsFile weights(folder + "/" + kAdapterWeights);
  if (weights.names().size() != tensors.size() ||
      back.config.targets.size() != adapter.layers().size())
    throw IoError(concat(folder, "/", kAdapterWeights, ": read back ", weights.names().size(),
                         " tensors, wrote ", tensors.size()));
  for (const SafetensorsEntry& t : tensors) {
    std::vector<float> values(t.values.size());
    weights.read_rows(t.name, 0, t.shape[0], values.data());
    if (std::memcmp(values.data(), t.values.data(), values.size() * sizeof(float)) != 0)
      throw IoError(concat(folder, "/", kAdapterWeights, ": ", t.name, " read back differently"));
  }
}

}  // namespace

void save_adapter(const std::string& folder, const Adapter& adapter, const std::string& base_model,
                  const std::string& base_fingerprint) {
  const LoraShape& shape = adapter.config().shape;
  std::vector<SafetensorsEntry> tensors;
  for (const LoraLinear* layer : adapter.layers())
    for (const Parameter* p : {&layer->a(), &layer->b()})
      tensors.push_back({kAdapterPrefix + p->name(), p->shape(), to_host<float>(p->value())});
  write_safetensors(folder + "/" + kAdapterWeights, tensors, {{"format", "pt"}});

  Json config = {{"peft_type", "LORA"},
                 {"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", base_model},
                 {"r", shape.rank},
                 {"lora_alpha", number(shape.alpha)},
                 {"lora_dropout", shortest(shape.dropout)},
                 {"target_modules", adapter.target_modules()},
                 {"bias", "none"},
                 {"fan_in_fan_out", files_of(adapter.model_config()).conv1d},
                 {"inference_mode", true},
                 {"init_lora_weights", true},
                 {"use_rslora", shape.rslora},
                 {"use_dora", false},
                 {"modules_to_save", nullptr},
                 {"rank_pattern", Json::object()},
                 {"alpha_pattern", Json::object()},
                 {"layers_to_transform", nullptr},
                 {"layers_pattern", nullptr},
                 {"auto_mapping", nullptr},
                 {"revision", nullptr},
                 {"lorikeet_base_sha256", base_fingerprint}};
  for (const auto& [key, own] : pattern_keys(adapter)) {
    if (own.rank != shape.rank) config["rank_pattern"][key] = own.rank;
    if (own.alpha != shape.alpha) config["alpha_pattern"][key] = number(own.alpha);
  }
  write_file_durably(folder + "/" + kAdapterConfig, json_text(config, 2) + "\n");
  verify(folder, adapter, tensors);
}

}  // namespace lk
