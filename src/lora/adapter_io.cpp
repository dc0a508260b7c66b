#include "lora/adapter_io.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

#include "io/durable.h"
#include "io/json.h"
#include "io/paths.h"
#include "io/safetensors.h"
#include "modelfile/family_files.h"

namespace lk {
namespace {

constexpr const char* kPrefix = "base_model.model.";
constexpr const char* kConfigName = "adapter_config.json";
constexpr const char* kWeightsName = "adapter_model.safetensors";

// A key whose presence with this meaning would change the mathematics in a way that we do not
// implement.
void refuse_unless_neutral(const Json& config, const std::string& where) {
  auto neutral = [](const Json& v) {
    return v.is_null() || (v.is_boolean() && !v.get<bool>()) || (v.is_object() && v.empty()) ||
           (v.is_array() && v.empty());
  };
  for (const char* key :
       {"use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
        "layer_replication", "lora_bias", "target_parameters", "trainable_token_indices",
        "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
        "velora_config", "monteclora_config"}) {
    if (config.contains(key) && !neutral(config[key]))
      throw InputError(concat(where, ": ", key, " = ", config[key].dump(),
                              " is not supported: only plain LoRA matrices are"));
  }
  if (std::string bias = json_string_or(config, "bias", "none", where); bias != "none")
    throw InputError(concat(where, ": bias = \"", bias, "\" is not supported, only \"none\""));
}

// "base_model.model.<path>.lora_A.weight" -> (path, 'A')
std::pair<std::string, char> parse_key(const std::string& key, const std::string& where) {
  std::string_view k = key;
  for (char which : {'A', 'B'}) {
    std::string suffix = concat(".lora_", which, ".weight");
    if (k.starts_with(kPrefix) && k.ends_with(suffix)) {
      std::string_view path = k.substr(std::string_view(kPrefix).size());
      path.remove_suffix(suffix.size());
      if (!path.empty()) return {std::string(path), which};
    }
  }
  throw InputError(concat(where, ": tensor '", key, "' is not '", kPrefix,
                          "<module>.lora_A.weight' or '...lora_B.weight'"));
}

}  // namespace

AdapterFile open_adapter(const std::string& folder) {
  const std::string config_path = folder + "/" + kConfigName, path = folder + "/" + kWeightsName;
  if (!exists(path) && exists(folder + "/adapter_model.bin"))
    throw InputError(folder +
                     "/adapter_model.bin: pickle files can run code and are never read; "
                     "save the adapter as safetensors");
  Json config = read_json(config_path, 16 << 20);
  if (!config.is_object()) throw InputError(config_path + ": not a JSON object");
  if (std::string type = json_string(config, "peft_type", config_path); type != "LORA")
    throw InputError(concat(config_path, ": peft_type \"", type, "\" is not supported, only LORA"));
  refuse_unless_neutral(config, config_path);
  // How the base's file stores its matrices; PEFT's own are (R,in) and (out,R) either way.
  json_bool_or(config, "fan_in_fan_out", false, config_path);

  AdapterFile file;
  file.folder = folder;
  if (config.contains("base_model_name_or_path") && !config["base_model_name_or_path"].is_null())
    file.base_model = json_string(config, "base_model_name_or_path", config_path);
  file.base_fingerprint = json_string_or(config, "lorikeet_base_sha256", "", config_path);
  LoraShape& shape = file.config.shape;
  shape.rank = json_int_or(config, "r", 8, 1, 65536, config_path);
  double alpha = json_number_or(config, "lora_alpha", 8, config_path);
  if (!std::isfinite(alpha) || alpha <= 0)
    throw InputError(concat(config_path, ": lora_alpha: must be positive, got ", alpha));
  // rsLoRA scales by alpha / sqrt(r): the same layer with alpha * sqrt(r) under our rule alpha / r.
  if (json_bool_or(config, "use_rslora", false, config_path))
    alpha *= std::sqrt(static_cast<double>(shape.rank));
  shape.alpha = alpha;
  double dropout = json_number_or(config, "lora_dropout", 0, config_path);
  if (!(dropout >= 0 && dropout < 1))
    throw InputError(concat(config_path, ": lora_dropout: must be in [0, 1), got ", dropout));
  shape.dropout = static_cast<float>(dropout);
  if (config.contains("target_modules")) {
    const Json& t = config["target_modules"];
    if (t.is_string()) file.target_modules.push_back(t.get<std::string>());
    if (t.is_array())
      for (const Json& name : t) {
        if (!name.is_string())
          throw InputError(config_path + ": target_modules: not a list of strings");
        file.target_modules.push_back(name.get<std::string>());
      }
  }

  SafetensorsFile weights(path);
  std::set<std::string> a, b;
  for (const std::string& key : weights.names()) {
    auto [module, which] = parse_key(key, path);
    (which == 'A' ? a : b).insert(module);
    Shape s = weights.shape(key);
    std::int64_t r = s.rank() == 2 ? (which == 'A' ? s[0] : s[1]) : -1;
    if (r != shape.rank)
      throw InputError(concat(path, ": ", key, " has shape ", s.str(), ", but ", kConfigName,
                              " says r = ", shape.rank));
  }
  if (a.empty()) throw InputError(path + ": holds no LoRA matrices");
  for (const std::string& module : a)
    if (!b.count(module)) throw InputError(concat(path, ": ", module, " has lora_A but no lora_B"));
  for (const std::string& module : b)
    if (!a.count(module)) throw InputError(concat(path, ": ", module, " has lora_B but no lora_A"));
  file.config.targets.assign(a.begin(), a.end());
  return file;
}

namespace {

// Every module of the file is a projection of the model, and large enough for the rank.
void check_modules(Transformer& model, const AdapterFile& file, const std::string& path) {
  std::set<std::string> unknown(file.config.targets.begin(), file.config.targets.end());
  std::string first;
  model.visit_sites(
      [&](const std::string& module, std::size_t, Site, std::unique_ptr<LinearMap>& map) {
        if (first.empty()) first = module;
        if (!unknown.erase(module)) return;
        if (file.config.shape.rank > std::min(map->in_features(), map->out_features()))
          throw InputError(concat(path, ": ", module, " is ", map->out_features(), " x ",
                                  map->in_features(), " in this model: too small for rank ",
                                  file.config.shape.rank));
      });
  if (!unknown.empty())
    throw InputError(concat(path, ": '", *unknown.begin(),
                            "' is no module of this model; its modules are called ", first,
                            " and so on"));
}

// A tensor of the file, checked.
std::vector<float> read_matrix(SafetensorsFile& weights, const std::string& key, const Shape& shape,
                               const std::string& path) {
  if (!weights.has(key)) throw InputError(concat(path, ": tensor '", key, "' is missing"));
  if (!(weights.shape(key) == shape))
    throw InputError(concat(path, ": ", key, " has shape ", weights.shape(key).str(),
                            ", this model needs ", shape.str()));
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  weights.read_rows(key, 0, shape[0], values.data());
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw InputError(concat(path, ": ", key, " holds a non-finite value at element ", i));
  return values;
}

bool any_nonzero(const std::vector<float>& values) {
  return std::any_of(values.begin(), values.end(), [](float v) { return v != 0; });
}

void upload_values(const Tensor& t, const std::vector<float>& values) {
  dispatch_float(t.dtype(), [&]<class T>() {
    const std::vector<T> raw(values.begin(), values.end());
    t.backend().upload(t, raw.data(), raw.size() * sizeof(T));
  });
}

// Values as a matrix of a floating dtype on the device.
Tensor upload_as(Backend& backend, DType dtype, Shape shape, const std::vector<float>& values) {
  Tensor t = backend.empty(Tag::Params, dtype, shape);
  upload_values(t, values);
  return t;
}

void fill(Adapter& adapter, const std::string& path, bool allow_untrained) {
  SafetensorsFile weights(path);
  std::set<std::string> unused;
  for (const std::string& key : weights.names()) unused.insert(key);
  bool moved = false;
  for (LoraLinear* layer : adapter.layers()) {
    for (Parameter* p : {&layer->a(), &layer->b()}) {
      const std::string key = kPrefix + p->name();
      const std::vector<float> values = read_matrix(weights, key, p->shape(), path);
      if (p == &layer->b()) moved = moved || any_nonzero(values);
      upload_values(p->value(), values);
      p->refresh();
      unused.erase(key);
    }
  }
  if (!unused.empty())
    throw InputError(
        concat(path, ": tensor '", *unused.begin(), "' belongs to no module of this model"));
  if (!moved && !allow_untrained)
    throw InputError(path + ": every lora_B is zero: this adapter was never trained");
}

}  // namespace

HostFactors read_factors(const AdapterFile& file, const std::string& module, std::int64_t out,
                         std::int64_t in) {
  const std::string path = file.folder + "/" + kWeightsName;
  SafetensorsFile weights(path);
  const LoraShape& shape = file.config.shape;
  HostFactors f{shape.rank, in, out, shape.scale(), {}, {}};
  const std::string key = kPrefix + module;
  f.a = read_matrix(weights, key + ".lora_A.weight", {f.rank, in}, path);
  f.b = read_matrix(weights, key + ".lora_B.weight", {out, f.rank}, path);
  return f;
}

std::unique_ptr<Adapter> attach_adapter(Transformer& model, const AdapterFile& file,
                                        const LoraConfig& config, bool allow_untrained) {
  const std::string path = file.folder + "/" + kWeightsName;
  check_modules(model, file, path);
  auto adapter = std::make_unique<Adapter>(model, config);
  fill(*adapter, path, allow_untrained);
  return adapter;
}

std::map<std::string, LoraFactors> load_factors(Transformer& model, const AdapterFile& file) {
  const std::string path = file.folder + "/" + kWeightsName;
  check_modules(model, file, path);
  SafetensorsFile weights(path);
  const std::int64_t R = file.config.shape.rank;
  const std::set<std::string> targets(file.config.targets.begin(), file.config.targets.end());
  std::map<std::string, LoraFactors> factors;
  bool moved = false;
  model.visit_sites([&](const std::string& module, std::size_t, Site,
                        std::unique_ptr<LinearMap>& map) {
    if (!targets.count(module)) return;
    const std::int64_t K = map->in_features(), N = map->out_features();
    const std::string key = kPrefix + module;
    const std::vector<float> a = read_matrix(weights, key + ".lora_A.weight", {R, K}, path);
    const std::vector<float> b = read_matrix(weights, key + ".lora_B.weight", {N, R}, path);
    moved = moved || any_nonzero(b);
    std::vector<float> b_t(b.size());
    for (std::int64_t n = 0; n < N; ++n)
      for (std::int64_t r = 0; r < R; ++r)
        b_t[static_cast<std::size_t>(r * N + n)] = b[static_cast<std::size_t>(n * R + r)];
    Backend& backend = model.backend();
    const DType dtype = model.compute_dtype();
    factors[module] = {upload_as(backend, dtype, {R, K}, a), upload_as(backend, dtype, {R, N}, b_t),
                       static_cast<float>(file.config.shape.scale())};
  });
  if (!moved) throw InputError(path + ": every lora_B is zero: this adapter was never trained");
  return factors;
}

void save_adapter(const std::string& folder, const Adapter& adapter, const std::string& base_model,
                  const std::string& base_fingerprint) {
  const LoraShape& shape = adapter.config().shape;
  std::vector<SafetensorsEntry> tensors;
  for (const LoraLinear* layer : adapter.layers())
    for (const Parameter* p : {&layer->a(), &layer->b()})
      tensors.push_back({kPrefix + p->name(), p->shape(), to_host<float>(p->value())});
  write_safetensors(folder + "/" + kWeightsName, tensors, {{"format", "pt"}});

  Json config = {{"peft_type", "LORA"},
                 {"task_type", "CAUSAL_LM"},
                 {"base_model_name_or_path", base_model},
                 {"r", shape.rank},
                 {"lora_alpha", shape.alpha},
                 {"lora_dropout", shape.dropout},
                 {"target_modules", adapter.target_modules()},
                 {"bias", "none"},
                 {"fan_in_fan_out", files_of(adapter.model_config()).conv1d},
                 {"inference_mode", true},
                 {"init_lora_weights", true},
                 {"use_rslora", false},
                 {"use_dora", false},
                 {"modules_to_save", nullptr},
                 {"rank_pattern", Json::object()},
                 {"alpha_pattern", Json::object()},
                 {"layers_to_transform", nullptr},
                 {"layers_pattern", nullptr},
                 {"auto_mapping", nullptr},
                 {"revision", nullptr},
                 {"lorikeet_base_sha256", base_fingerprint}};
  if (double whole = std::floor(shape.alpha); whole == shape.alpha && whole < 1e15)
    config["lora_alpha"] = static_cast<std::int64_t>(whole);
  // The shortest decimal that reads back as the same float: 0.1, not 0.10000000149.
  char decimal[32];
  double dropout = 0;
  std::from_chars(decimal, std::to_chars(decimal, std::end(decimal), shape.dropout).ptr, dropout);
  config["lora_dropout"] = dropout;
  write_file_durably(folder + "/" + kConfigName, config.dump(2) + "\n");

  // Nothing is claimed until the files say what the memory says.
  AdapterFile back = open_adapter(folder);
  if (back.config.shape.rank != shape.rank || back.config.shape.alpha != shape.alpha)
    throw IoError(
        concat(folder, "/", kConfigName, ": read back differently from what was written"));
  SafetensorsFile weights(folder + "/" + kWeightsName);
  if (weights.names().size() != tensors.size())
    throw IoError(concat(folder, "/", kWeightsName, ": read back ", weights.names().size(),
                         " tensors, wrote ", tensors.size()));
  for (const SafetensorsEntry& t : tensors) {
    std::vector<float> values(t.values.size());
    weights.read_rows(t.name, 0, t.shape[0], values.data());
    if (std::memcmp(values.data(), t.values.data(), values.size() * sizeof(float)) != 0)
      throw IoError(concat(folder, "/", kWeightsName, ": ", t.name, " read back differently"));
  }
}

}  // namespace lk
