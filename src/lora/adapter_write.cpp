#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>
#include <set>

#include "io/checked.h"
#include "io/durable.h"
#include "io/json.h"
#include "io/output_folder.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "lora/rank_patterns.h"
#include "modelfile/base_identity.h"
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

// How PEFT says what A and B started as. A converted adapter is one like any other.
Json init_key(LoraInit init) {
  if (init == LoraInit::Kaiming || changes_base(init)) return true;
  return lora_init_name(init);
}

// A layer's shape in the file: Note [Taken out of the base] in lora_init.h. The scale stays.
LoraShape saved_shape(LoraShape shape, bool converted) {
  if (!converted) return shape;
  shape.rank *= 2;
  shape.alpha *= shape.rslora ? std::numbers::sqrt2 : 2;
  return shape;
}

// A layer's tensors as the file has them: A, B and, with DoRA, the magnitude. Those of a layer whose
// start was taken out of the base are [A; A0] and [B, -B0].
std::vector<SafetensorsEntry> saved_tensors(const LoraLinear& layer) {
  const std::string path = kAdapterPrefix + layer.path();
  std::vector<float> a = to_host<float>(layer.a().value()), b = to_host<float>(layer.b().value());
  const std::int64_t R = layer.shape().rank, in = layer.in_features(), out = layer.out_features(),
                     saved = saved_shape(layer.shape(), layer.start() != nullptr).rank;
  if (const StartingFactors* start = layer.start()) {
    a.insert(a.end(), start->a.begin(), start->a.end());
    std::vector<float> both;
    for (std::int64_t n = 0; n < out; ++n) {
      both.insert(both.end(), b.begin() + n * R, b.begin() + (n + 1) * R);
      for (std::int64_t r = 0; r < R; ++r)
        both.push_back(-start->b[static_cast<std::size_t>(n * R + r)]);
    }
    b = std::move(both);
  }
  std::vector<SafetensorsEntry> all;
  all.push_back({path + ".lora_A.weight", {saved, in}, std::move(a)});
  all.push_back({path + ".lora_B.weight", {out, saved}, std::move(b)});
  if (const Parameter* m = layer.magnitude())
    all.push_back({kAdapterPrefix + m->name(), m->shape(), to_host<float>(m->value())});
  return all;
}

// The keys of rank_pattern and alpha_pattern with the ranks and alphas that differ from the
// config's own: "v_proj" where all modules of that name share them, a path elsewhere. No module
// matches two keys, so their order means nothing.
std::map<std::string, RankAlpha> pattern_keys(const Adapter& adapter) {
  auto name_of = [](const std::string& path) { return path.substr(path.rfind('.') + 1); };
  auto own = [](const LoraLinear& layer) {
    const LoraShape shape = saved_shape(layer.shape(), layer.start() != nullptr);
    return RankAlpha{shape.rank, shape.alpha};
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
    const LoraShape want = saved_shape(layer->shape(), layer->start() != nullptr),
                    have = back.config.shape_of(layer->path());
    if (have.rank != want.rank || have.alpha != want.alpha || have.rslora != want.rslora ||
        have.dora != want.dora)
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
    weights.read_rows(t.name, 0, t.shape.rank() == 1 ? 1 : t.shape[0], values.data());
    if (std::memcmp(values.data(), t.values.data(), values.size() * sizeof(float)) != 0)
      throw IoError(concat(folder, "/", kAdapterWeights, ": ", t.name, " read back differently"));
  }
}

}  // namespace

void save_adapter(const std::string& folder, const Adapter& adapter, const std::string& base_model,
                  const std::string& base_fingerprint) {
  save_adapter(folder, adapter, BaseIdentity{base_model, base_fingerprint});
}

void save_adapter(const std::string& folder, const Adapter& adapter, const BaseIdentity& base) {
  const LoraConfig& lora = adapter.config();
  const LoraShape shape = saved_shape(lora.shape, changes_base(lora.init));
  std::vector<SafetensorsEntry> tensors;
  for (const LoraLinear* layer : adapter.layers())
    for (SafetensorsEntry& t : saved_tensors(*layer)) tensors.push_back(std::move(t));
  make_folders(folder);
  write_safetensors(folder + "/" + kAdapterWeights, tensors, base_metadata(base));

  Json config = {{"peft_type", "LORA"},
                 {"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", base.name},
                 {"r", shape.rank},
                 {"lora_alpha", number(shape.alpha)},
                 {"lora_dropout", shortest(shape.dropout)},
                 {"target_modules", adapter.target_modules()},
                 {"bias", "none"},
                 {"fan_in_fan_out", files_of(adapter.model_config()).conv1d},
                 {"inference_mode", true},
                 {"init_lora_weights", init_key(lora.init)},
                 {"use_rslora", shape.rslora},
                 {"use_dora", shape.dora},
                 {"modules_to_save", nullptr},
                 {"rank_pattern", Json::object()},
                 {"alpha_pattern", Json::object()},
                 {"layers_to_transform", nullptr},
                 {"layers_pattern", nullptr},
                 {"auto_mapping", nullptr},
                 {"revision", nullptr}};
  if (!lora.layers.empty()) config["layers_to_transform"] = lora.layers;
  for (const auto& [key, own] : pattern_keys(adapter)) {
    if (own.rank != shape.rank) config["rank_pattern"][key] = own.rank;
    if (own.alpha != shape.alpha) config["alpha_pattern"][key] = number(own.alpha);
  }
  write_file_durably(folder + "/" + kAdapterConfig, json_text(config, 2) + "\n");
  verify(folder, adapter, tensors);
}

std::vector<std::pair<std::string, std::string>> Adapter::facts() const {
  const LoraShape& shape = config_.shape;
  std::vector<std::pair<std::string, std::string>> all;
  all.emplace_back("rank, alpha, dropout",
                   concat(shape.rank, ", ", shape.alpha, ", ", shape.dropout));
  if (shape.dora)
    all.emplace_back("variant", "DoRA: the lengths of the weights' rows are trained too");
  if (shape.rslora) all.emplace_back("scale", "alpha / sqrt(rank), rank-stabilised");
  if (!config_.exceptions.empty())
    all.emplace_back("other ranks and alphas",
                     concat(config_.exceptions.size(),
                            " modules, by `rank_pattern` and `alpha_pattern` in "
                            "`adapter_config.json`"));
  if (config_.init != LoraInit::Kaiming)
    all.emplace_back("initialised", concat(lora_init_name(config_.init),
                                           changes_base(config_.init)
                                               ? "; saved at twice the rank, for the base as it was"
                                               : ""));
  std::string targets;
  for (const std::string& t : target_modules()) targets += (targets.empty() ? "" : ", ") + t;
  if (!config_.layers.empty()) targets += " of layers " + layers_text(config_.layers);
  all.emplace_back("modules", targets);
  return all;
}

}  // namespace lk
