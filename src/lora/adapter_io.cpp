#include "lora/adapter_io.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "io/paths.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "lora/peft_config.h"
#include "lora/whole_weights.h"
#include "modelfile/base_identity.h"
#include "modelfile/no_model.h"

namespace lk {
namespace {

constexpr const char* kMagnitude = ".lora_magnitude_vector";

// What a tensor of the file is: lora_A, lora_B or DoRA's magnitude of a module, or a whole weight.
struct TensorRole {
  enum Kind { A, B, Magnitude, Whole } kind;
  std::string name;  // the module's path, or the weight's name
};

TensorRole parse_key(const std::string& key, const std::string& where) {
  const std::string_view k = key, prefix = kAdapterPrefix;
  if (k.starts_with(prefix)) {
    const std::string_view name = k.substr(prefix.size());
    for (auto [kind, suffix] : {std::pair{TensorRole::A, std::string_view(".lora_A.weight")},
                                std::pair{TensorRole::B, std::string_view(".lora_B.weight")},
                                std::pair{TensorRole::Magnitude, std::string_view(kMagnitude)}})
      if (name.ends_with(suffix) && name.size() > suffix.size())
        return {kind, std::string(name.substr(0, name.size() - suffix.size()))};
    if (name.ends_with(".weight") && name.find(".lora_") == std::string_view::npos)
      return {TensorRole::Whole, std::string(name)};
  }
  throw InputError(concat(where, ": tensor '", key, "' is not '", kAdapterPrefix,
                          "<module>.lora_A.weight' or '...lora_B.weight'"));
}

// What is in modules_to_save was trained whole, so without its tensor the adapter is incomplete.
void check_modules_to_save(const PeftConfig& config, const AdapterFile& file) {
  for (const std::string& module : config.modules_to_save()) {
    auto holds = [&](const std::string& weight) {
      return target_matches(weight.substr(0, weight.rfind('.')), module);
    };
    if (std::none_of(file.whole_weights.begin(), file.whole_weights.end(), holds))
      throw InputError(concat(file.folder, "/", kAdapterConfig, ": modules_to_save: ", module,
                              " has no weight in ", kAdapterWeights));
  }
}

// The scale is computed with in float32.
void check_scale(const LoraShape& shape, const std::string& where, const std::string& module) {
  const double scale = shape.scale();
  if (scale < std::numeric_limits<float>::min() || scale > std::numeric_limits<float>::max())
    throw InputError(concat(where, ": lora_alpha or alpha_pattern: ", shape.alpha, " at rank ",
                            shape.rank, " scales ", printable(module), " by ", scale,
                            ", which float32 does not hold"));
}

// What target_modules means that is absent or null.
std::string no_targets(const AdapterFile& file) {
  if (!file.target_modules.empty()) return "";
  return " target_modules is not given, which means q_proj and v_proj (GPT-2: c_attn), as in PEFT:";
}

}  // namespace

AdapterFile open_adapter(const std::string& folder) {
  const std::string config_path = folder + "/" + kAdapterConfig,
                    path = folder + "/" + kAdapterWeights;
  require(!folder.empty(), "`adapter` is empty: a folder is expected");
  if (!exists(folder)) {
    const std::string command = download_command(folder);
    throw InputError(concat(folder, ": no such folder",
                            command.empty() ? ""
                                            : ". If it is an adapter's name on the Hugging Face "
                                              "hub, download it and give the folder: ",
                            command));
  }
  if (!is_folder(folder))
    throw InputError(concat(folder, ": an adapter is given as its folder, with ", kAdapterConfig,
                            " and ", kAdapterWeights, ", not as a file"));
  if (!exists(config_path) && exists(folder + "/config.json"))
    throw InputError(concat(folder, ": is a whole model, not an adapter: give it as `model` ",
                            folder, ", without `adapter`"));
  if (!exists(config_path) && exists(folder + "/run.json"))
    throw InputError(concat(folder,
                            ": no adapter yet: the run has not finished, or failed (run.json "
                            "says which)"));
  if (!exists(path) && exists(folder + "/adapter_model.bin"))
    throw InputError(folder +
                     "/adapter_model.bin: pickle files can run code and are never read; "
                     "save the adapter as safetensors");
  if (!exists(path) && exists(folder + "/adapters.safetensors"))
    throw InputError(folder +
                     "/adapters.safetensors: an adapter of MLX, whose names, shapes and config are "
                     "others than PEFT's; convert it to PEFT's adapter_model.safetensors first");
  const PeftConfig config(config_path);
  AdapterFile file;
  file.folder = folder;
  file.selects = [config](const std::string& module) { return config.selects(module); };
  file.target_modules = config.target_modules();
  file.config.shape = config.shape();
  file.config.wide_ranks = true;

  const SafetensorsFile weights(path);
  file.base.name = config.base_model();
  file.base.fingerprint = config.base_fingerprint();
  read_base_metadata(file.base, weights.metadata(), path);
  std::set<std::string> a, b, magnitudes, unselected;
  for (const std::string& key : weights.names()) {
    const auto [kind, name] = parse_key(key, path);
    if (kind == TensorRole::Whole) {
      file.whole_weights.push_back(name);
      continue;
    }
    if (!config.selects(name)) {
      unselected.insert(name);
      continue;
    }
    if (kind == TensorRole::Magnitude) {
      if (!file.config.shape.dora)
        throw InputError(
            concat(path, ": ", key, " is of DoRA, but ", kAdapterConfig, " does not say use_dora"));
      magnitudes.insert(name);
      continue;
    }
    (kind == TensorRole::A ? a : b).insert(name);
    const RankAlpha own = config.rank_alpha(name);
    if (!(own == RankAlpha{config.shape().rank, config.shape().alpha}))
      file.config.exceptions[name] = own;
    const Shape s = weights.shape(key);
    const std::int64_t r = s.rank() == 2 ? (kind == TensorRole::A ? s[0] : s[1]) : -1;
    if (r != own.rank)
      throw InputError(concat(path, ": ", key, " has shape ", s.str(), ", but ", kAdapterConfig,
                              " says ", own.rank == config.shape().rank ? "r" : "rank_pattern",
                              " = ", own.rank));
    check_scale(file.config.shape_of(name), config_path, name);
  }
  if (a.empty() && b.empty() && !unselected.empty())
    throw InputError(concat(config_path, ":", no_targets(file),
                            " target_modules and what limits them select no module of ",
                            kAdapterWeights, ", which has ", *unselected.begin(), " and so on"));
  if (a.empty() && b.empty()) throw InputError(path + ": holds no LoRA matrices");
  for (const std::string& module : a)
    if (!b.count(module)) throw InputError(concat(path, ": ", module, " has lora_A but no lora_B"));
  for (const std::string& module : b)
    if (!a.count(module)) throw InputError(concat(path, ": ", module, " has lora_B but no lora_A"));
  for (const std::string& module : a)
    if (file.config.shape.dora && !magnitudes.count(module))
      throw InputError(concat(path, ": ", module, " has no lora_magnitude_vector (", kAdapterConfig,
                              " says use_dora)"));
  for (const std::string& module : magnitudes)
    if (!a.count(module))
      throw InputError(concat(path, ": ", module, " has lora_magnitude_vector but no lora_A"));
  file.config.targets.assign(a.begin(), a.end());
  file.unselected.assign(unselected.begin(), unselected.end());
  check_modules_to_save(config, file);
  return file;
}

std::string summary(const AdapterFile& file) {
  const LoraShape& shape = file.config.shape;
  std::string text = concat(shape.dora ? "DoRA, " : "", "rank ", shape.rank, ", alpha ",
                            shape.alpha, ", ", file.config.targets.size(), " modules");
  if (!file.config.exceptions.empty())
    text +=
        concat(", ", file.config.exceptions.size(), " of them with a rank or alpha of their own");
  return text;
}

void refuse_module(const std::string& where, const std::string& module, const ModelConfig& config,
                   const std::string& model) {
  std::string first;
  bool there = module == module_path(family_of(config), Role::Head);  // a tied one has no slot
  ModelWeights unused;
  for (const WeightSlot& slot : weight_slots(config, unused)) {
    const std::string own = slot.name.substr(0, slot.name.rfind('.'));
    there = there || own == module;
    if (first.empty() && slot.linear) first = own;
  }
  if (there)
    throw InputError(concat(where, ": '", module, "' of ", model,
                            " can't have an adapter here: only projections of its layers can, ",
                            first, " and so on"));
  throw InputError(concat(where, ": '", module, "' is no module of ", model,
                          "; its modules are called ", first, " and so on"));
}

void refuse_untrained(const std::string& where) {
  throw InputError(where + ": every lora_B is zero: this adapter was never trained");
}

void check_modules(const AdapterFile& file, const ModelConfig& config, const std::string& model) {
  std::set<std::string> unknown(file.config.targets.begin(), file.config.targets.end());
  ModelWeights unused;
  for (const WeightSlot& slot : weight_slots(config, unused))
    if (slot.linear && slot.role != Role::Head)
      unknown.erase(slot.name.substr(0, slot.name.rfind('.')));
  if (!unknown.empty())
    refuse_module(file.folder + "/" + kAdapterWeights, *unknown.begin(), config, model);
}

std::vector<std::string> disagreements(const AdapterFile& file, const ModelConfig& config) {
  std::set<std::string> lacking;
  ModelWeights weights;
  for (const WeightSlot& slot : weight_slots(config, weights)) {
    const std::string module = slot.name.substr(0, slot.name.rfind('.'));
    if (slot.linear && slot.role != Role::Head && file.selects(module)) lacking.insert(module);
  }
  for (const std::string& module : file.config.targets) lacking.erase(module);
  std::vector<std::string> lines;
  if (!file.unselected.empty())
    lines.push_back(concat(file.folder, "/", kAdapterConfig, ":", no_targets(file),
                           " does not select ", file.unselected.size(), " of the modules in ",
                           kAdapterWeights, " (", printable(file.unselected.front()),
                           "...), which are left out"));
  if (!lacking.empty())
    lines.push_back(concat(file.folder, "/", kAdapterWeights, ": lacks ", lacking.size(),
                           " of the modules that ", kAdapterConfig, " selects (",
                           printable(*lacking.begin()),
                           "...), which stay as in the base: is the file whole?"));
  return lines;
}

namespace {

// Reads a tensor of the file and checks its shape and values.
std::vector<float> read_matrix(SafetensorsFile& weights, const std::string& key, const Shape& shape,
                               const std::string& path) {
  if (!weights.has(key)) throw InputError(concat(path, ": tensor '", key, "' is missing"));
  if (!(weights.shape(key) == shape))
    throw InputError(concat(path, ": ", key, " has shape ", weights.shape(key).str(),
                            ", this model needs ", shape.str()));
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  weights.read_rows(key, 0, shape.rank() == 1 ? 1 : shape[0], values.data());
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

// Uploads values as a matrix of a floating dtype.
Tensor upload_as(Backend& backend, DType dtype, Shape shape, const std::vector<float>& values) {
  Tensor t = backend.empty(Tag::Params, dtype, shape);
  upload_values(t, values);
  return t;
}

void fill(Adapter& adapter, const std::string& path, bool allow_untrained) {
  SafetensorsFile weights(path);
  bool moved = false;
  for (LoraLinear* layer : adapter.layers()) {
    for (Parameter* p : layer->parameters()) {
      const std::string key = kAdapterPrefix + p->name();
      const std::vector<float> values = read_matrix(weights, key, p->shape(), path);
      if (p == &layer->b()) moved = moved || any_nonzero(values);
      upload_values(p->value(), values);
      p->refresh();
    }
  }
  if (!moved && !allow_untrained) refuse_untrained(path);
}

}  // namespace

HostFactors read_factors(const AdapterFile& file, const std::string& module, std::int64_t out,
                         std::int64_t in) {
  const std::string path = file.folder + "/" + kAdapterWeights;
  SafetensorsFile weights(path);
  const LoraShape shape = file.config.shape_of(module);
  HostFactors f{shape.rank, in, out, shape.scale(), {}, {}, {}};
  const std::string key = kAdapterPrefix + module;
  f.a = read_matrix(weights, key + ".lora_A.weight", {f.rank, in}, path);
  f.b = read_matrix(weights, key + ".lora_B.weight", {out, f.rank}, path);
  if (shape.dora) f.magnitude = read_matrix(weights, key + kMagnitude, {out}, path);
  return f;
}

std::unique_ptr<Adapter> attach_adapter(Transformer& model, const AdapterFile& file,
                                        const LoraConfig& config, bool allow_untrained) {
  const std::string path = file.folder + "/" + kAdapterWeights;
  check_modules(file, model.config(), "this model");
  check_whole_weights(file, model);
  auto adapter = std::make_unique<Adapter>(model, config);
  fill(*adapter, path, allow_untrained);
  return adapter;
}

std::map<std::string, LoraFactors> load_factors(Transformer& model, const AdapterFile& file) {
  const std::string path = file.folder + "/" + kAdapterWeights;
  check_modules(file, model.config(), "this model");
  check_whole_weights(file, model);
  if (file.config.shape.dora)
    throw InputError(concat(file.folder, "/", kAdapterConfig,
                            ": use_dora: DoRA scales the base's own outputs, so it can't be one of "
                            "several adapters on one base: use it alone, or merge it"));
  SafetensorsFile weights(path);
  const std::set<std::string> targets(file.config.targets.begin(), file.config.targets.end());
  std::map<std::string, LoraFactors> factors;
  bool moved = false;
  model.visit_sites([&](const std::string& module, std::size_t, Site,
                        std::unique_ptr<LinearMap>& map) {
    if (!targets.count(module)) return;
    const LoraShape shape = file.config.shape_of(module);
    const std::int64_t K = map->in_features(), N = map->out_features(), R = shape.rank;
    const std::string key = kAdapterPrefix + module;
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
                       static_cast<float>(shape.scale())};
  });
  if (!moved) refuse_untrained(path);
  return factors;
}

}  // namespace lk
