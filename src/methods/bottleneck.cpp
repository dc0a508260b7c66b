#include "methods/bottleneck.h"

#include <cmath>
#include "autograd/trained.h"

#include "io/durable.h"
#include "io/paths.h"
#include "methods/bottleneck_config.h"
#include "methods/initial_values.h"
#include "modelfile/base_identity.h"
#include "modelfile/family_files.h"
#include "nn/transformer.h"

namespace lk {
namespace {

constexpr const char* kBottleneckConfig = "adapter_config.json";
constexpr const char* kBottleneckWeights = "adapter.safetensors";
constexpr const char* kName = "lorikeet";  // of the adapters that we write
constexpr std::string_view kObeyedOfFile[] = {"config", "hidden_size", kBaseFingerprint,
                                              "model_name", "name"};
constexpr std::string_view kHarmlessInFile[] = {"config_id", "model_class", "model_type",
                                                "version"};

// n numbers of N(0, deviation^2), those outside of two deviations left out if `cut`.
std::vector<float> normal_values(std::int64_t n, double deviation, bool cut, std::uint64_t seed,
                                 std::uint32_t site) {
  std::vector<float> values;
  for (std::int64_t more = cut ? n + n / 8 + 64 : n; std::ssize(values) < n; more *= 2) {
    values.clear();
    for (float v : lk::normal_values(more, seed, site))
      if (std::ssize(values) < n && (!cut || std::abs(v) <= 2))
        values.push_back(static_cast<float>(deviation * v));
  }
  return values;
}

Json read_config(const std::string& path) {
  Json config = parse_json(read_json_text(path, std::size_t{16} << 20), path);
  if (!config.is_object()) throw InputError(path + ": not a JSON object");
  return config;
}

}  // namespace

BottleneckConfig BottleneckConfig::of_kind(const std::string& kind, std::int64_t size) {
  BottleneckConfig c;
  c.sizes = {size};
  if (kind == "pfeiffer") return c;
  if (kind == "houlsby") {
    c.input = Input::Sublayer;
    c.after_attention = true;
    c.activation = Activation::Silu;
    return c;
  }
  require(kind == "parallel", "`bottleneck_kind` ", kind,
          ": there are pfeiffer, houlsby and parallel");
  c.input = Input::Residual;
  c.scale = 4;
  c.init = Init::Mam;
  return c;
}

// One adapter behind one sublayer.
class Bottleneck::Unit : public SublayerPlace {
 public:
  Unit(Transformer& model, const BottleneckConfig& config, std::string path, std::size_t layer,
       bool attention, std::uint32_t site)
      : config_(config),
        path_(std::move(path)),
        place_(attention ? &model.places(layer).after_attention : &model.places(layer).after_mlp),
        site_(site) {
    const std::int64_t C = model.config().hidden_size, B = config.size_of(layer);
    auto add = [&](const char* name, Shape shape, const std::vector<float>& values) {
      parameters_.push_back(
          parameter_of(model.backend(), model.compute_dtype(), path_ + name, shape, values));
    };
    auto zeros = [](std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(n)); };
    auto weights = [&](std::uint32_t which) -> std::vector<float> {
      if (config.init == BottleneckConfig::Init::Mam) return zeros(B * C);
      const bool bert = config.init == BottleneckConfig::Init::Bert;
      return normal_values(B * C, bert ? 0.02 : 0.01, !bert, config.seed, 2 * site + which);
    };
    parameters_.reserve(4);  // nodes refer to them: they may not move
    add(".adapter_down.0.weight", {B, C}, weights(0));
    add(".adapter_down.0.bias", {B}, zeros(B));
    add(".adapter_up.weight", {C, B}, weights(1));
    add(".adapter_up.bias", {C}, zeros(C));
    if (config.init == BottleneckConfig::Init::Mam) {
      // Kaiming-uniform with a = sqrt 5 is U(-1/sqrt(in), 1/sqrt(in)).
      model.backend().uniform(parameters_[0].value(), 1.0f / std::sqrt(static_cast<float>(C)),
                              initial_key(config.seed, 2 * site));
      parameters_[0].refresh();
    }
    set_enabled(true);
  }

  Var apply(Tape& tape, const Var& x, const Var& y, const ForwardMode& mode) override {
    const Var v = config_.input == BottleneckConfig::Input::Sum        ? lk::add(tape, y, x)
                  : config_.input == BottleneckConfig::Input::Sublayer ? y
                                                                       : x;
    const Var inner =
        activation(tape, config_.activation, linear(tape, v, parameters_[0], &parameters_[1]));
    Var u = linear(tape, inner, parameters_[2], &parameters_[3]);
    if (config_.scale != 1) u = scaled(tape, u, config_.scale);
    if (mode.training) u = dropout(tape, u, config_.dropout, dropout_key(mode, site_));
    return lk::add(tape, y, u);
  }

  void set_enabled(bool enabled) { *place_ = enabled ? this : nullptr; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::string& path() const { return path_; }

 private:
  const BottleneckConfig& config_;
  std::string path_;  // "model.layers.0.output_adapters"
  SublayerPlace** place_;
  std::uint32_t site_;
  std::vector<Parameter> parameters_;  // down's weight and bias, up's
};

Bottleneck::Bottleneck(Transformer& model, BottleneckConfig config)
    : model_(model), config_(std::move(config)) {
  const ModelConfig& shape = model.config();
  require(std::isfinite(config_.scale) && config_.scale != 0, "`scale` ", config_.scale,
          ": must be finite and not 0");
  require(config_.dropout >= 0 && config_.dropout < 1, "`dropout` ", config_.dropout,
          ": must be in [0, 1)");
  std::int64_t most = 0;
  for (std::int64_t size : config_.sizes) {
    require(size >= 0 && size <= std::int64_t{1} << 24, "`bottleneck` ", size,
            ": must be from 1 to ", 1 << 24);
    most = std::max(most, size);
  }
  require(most > 0, "`bottleneck` 0: must be at least 1");
  const auto layers = static_cast<std::size_t>(shape.n_layers);
  for (std::size_t i = 0; i < layers; ++i) {
    const BlockPlaces& places = model.places(i);
    require(!(config_.after_attention && places.after_attention) &&
                !(config_.after_mlp && places.after_mlp),
            "layer ", i, " has something behind its sublayers already");
  }
  // Dropout masks and first values are keyed by the place, away from the projections' own numbers.
  constexpr std::uint32_t kFirstSite = 1u << 20;
  const std::string prefix = family_of(shape).layer_prefix;
  for (std::size_t i = 0; i < layers; ++i) {
    if (config_.size_of(i) == 0) continue;
    const std::uint32_t site = kFirstSite + 2 * static_cast<std::uint32_t>(i);
    if (config_.after_attention)
      units_.push_back(std::make_unique<Unit>(
          model, config_, concat(prefix, i, ".attention_adapters"), i, true, site));
    if (config_.after_mlp)
      units_.push_back(std::make_unique<Unit>(model, config_, concat(prefix, i, ".output_adapters"),
                                              i, false, site + 1));
  }
  require(!units_.empty(), "`bottleneck`: no layer has one");
}

Bottleneck::~Bottleneck() { set_enabled(false); }

std::vector<Parameter*> Bottleneck::parameters() const {
  std::vector<Parameter*> all;
  for (const auto& unit : units_)
    for (Parameter& p : unit->parameters()) all.push_back(&p);
  return all;
}

std::vector<Parameter*> Bottleneck::first_to_move() const {
  std::vector<Parameter*> all;
  for (const auto& unit : units_) all.push_back(&unit->parameters()[3]);
  return all;
}

void Bottleneck::set_enabled(bool enabled) {
  for (const auto& unit : units_) unit->set_enabled(enabled);
}

std::vector<std::pair<std::string, std::string>> Bottleneck::facts() const {
  const char* input = config_.input == BottleneckConfig::Input::Sum        ? "h + x (Pfeiffer)"
                      : config_.input == BottleneckConfig::Input::Sublayer ? "h (Houlsby)"
                                                                           : "x (parallel)";
  return {{"bottleneck", concat(config_.sizes[0])},
          {"input", input},
          {"adapters", concat(units_.size())},
          {"scale, dropout", concat(config_.scale, ", ", config_.dropout)}};
}

// "model.layers.0.output_adapters.adapter_up.bias" in memory has the adapter's name in the file:
// "model.layers.0.output_adapters.adapters.NAME.adapter_up.bias".
std::vector<StoredParameter> Bottleneck::stored(const std::string& name) const {
  std::vector<StoredParameter> all;
  for (const auto& unit : units_)
    for (Parameter& p : unit->parameters())
      all.push_back({&p,
                     concat(unit->path(), ".adapters.", name, p.name().substr(unit->path().size())),
                     p.shape()});
  return all;
}

void Bottleneck::save(const std::string& folder, const BaseIdentity& base) const {
  const ModelConfig& shape = model_.config();
  write_safetensors(folder + "/" + kBottleneckWeights, entries_of(stored(kName)),
                    base_metadata(base));
  const Json config = {
      {"config", bottleneck_config_json(config_, shape.hidden_size, shape.n_layers)},
      {"config_id", nullptr},
      {"hidden_size", shape.hidden_size},
      {"model_class", files_of(shape).class_name},
      {"model_name", base.name},
      {"model_type", shape.architecture},
      {"name", kName},
      {"version", "adapters.1.3.0"}};
  write_file_durably(folder + "/" + kBottleneckConfig, json_text(config, 2) + "\n");
}

bool BottleneckFile::recognises(const Json& config) {
  return config.contains("config") && config.contains("hidden_size") &&
         !config.contains("peft_type");
}

BottleneckFile::BottleneckFile(const std::string& folder) : folder_(folder) {
  const std::string path = folder + "/" + kBottleneckConfig;
  const Json config = read_config(path);
  refuse_unknown(config, kObeyedOfFile, kHarmlessInFile, path, "only bottleneck adapters are");
  if (config.contains("model_name") && !is_off(config["model_name"]))
    base_.name = json_string(config, "model_name", path);
  name_ = json_string(config, "name", path);
  hidden_size_ = json_int(config, "hidden_size", 1, 1 << 24, path);
  const Json& own = json_at(config, "config", path);
  if (own.is_object() && own.contains("architecture") && !is_off(own["architecture"]))
    throw InputError(concat(path, ": config: architecture = ", own["architecture"].dump(),
                            " is not supported: only bottleneck adapters are"));
  config_ = read_bottleneck_config(own, hidden_size_, 1, path);  // layers are not known yet
  if (!exists(folder + "/" + kBottleneckWeights) && exists(folder + "/pytorch_adapter.bin"))
    throw InputError(concat(folder,
                            "/pytorch_adapter.bin: a pickle, which could run any program; "
                            "save it with save_adapter(..., use_safetensors=True)"));
  const std::string weights = folder + "/" + kBottleneckWeights;
  base_.fingerprint = json_string_or(config, kBaseFingerprint, "", path);
  read_base_metadata(base_, SafetensorsFile(weights).metadata(), weights);
}

std::string BottleneckFile::summary() const {
  return concat("bottleneck adapters", config_.after_attention && config_.after_mlp
                                           ? " behind attention and MLP"
                                       : config_.after_mlp ? " behind the MLP"
                                                           : " behind attention");
}

std::unique_ptr<Method> BottleneckFile::attach(Transformer& model) const {
  const std::string path = folder_ + "/" + kBottleneckConfig;
  const ModelConfig& shape = model.config();
  if (shape.hidden_size != hidden_size_)
    throw InputError(
        concat(path, ": hidden_size: ", hidden_size_, ", the model has ", shape.hidden_size));
  const Json config = read_config(path);
  BottleneckConfig own =
      read_bottleneck_config(json_at(config, "config", path), hidden_size_, shape.n_layers, path);
  auto adapter =
      from_file(path, [&] { return std::make_unique<Bottleneck>(model, std::move(own)); });
  load_parameters(folder_ + "/" + kBottleneckWeights, adapter->stored(name_));
  return adapter;
}

}  // namespace lk
