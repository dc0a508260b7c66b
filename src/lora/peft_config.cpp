#include "lora/peft_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/config_keys.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/printable.h"
#include "io/utf8.h"

namespace lk {
namespace {

constexpr std::size_t kMostBytes = std::size_t{16} << 20;

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const Args&... message) {
  throw InputError(concat(where, ": ", message...));
}

bool given(const Json& config, const char* key) {
  return config.contains(key) && !is_off(config[key]);
}

// What PeftConfig obeys.
constexpr std::string_view kObeyed[] = {"alpha_pattern",
                                        "base_model_name_or_path",
                                        "bias",
                                        "exclude_modules",
                                        "init_lora_weights",
                                        "layers_pattern",
                                        "layers_to_transform",
                                        "lora_alpha",
                                        "lora_dropout",
                                        "lorikeet_base_sha256",
                                        "modules_to_save",
                                        "peft_type",
                                        "r",
                                        "rank_pattern",
                                        "target_modules",
                                        "use_dora",
                                        "use_rslora"};

// What changes nothing that is computed. fan_in_fan_out says how the base's file stores its
// matrices, and A and B are (R,in) and (out,R) either way; the *_config keys say how A and B were
// initialised; megatron_core and qalora_group_size mean something only beside keys that are
// refused; ensure_weight_tying ties what is trained of an embedding, and nothing of it may be.
constexpr std::string_view kHarmless[] = {
    "auto_mapping",      "corda_config", "ensure_weight_tying", "eva_config",    "fan_in_fan_out",
    "inference_mode",    "loftq_config", "lora_ga_config",      "megatron_core", "peft_version",
    "qalora_group_size", "revision",     "runtime_config",      "task_type"};

void refuse_unknown(const Json& config, const std::string& where) {
  if (const auto unknown = unknown_key(config, {kObeyed, kHarmless})) {
    const std::string name = printable(unknown->key), plain = name.substr(1, name.size() - 2);
    refuse(where, plain, " = ", unknown->value, " is not supported: only plain LoRA matrices are");
  }
  if (std::string bias = json_string_or(config, "bias", "none", where); bias != "none")
    refuse(where, "bias = ", printable(bias), " is not supported, only \"none\"");
}

// A and B are in the file whatever they were initialised with. But some initialisations also take
// s B A away from the base's matrices, and A and B were trained on what is left: beside the
// unchanged base they mean something else.
void check_init(const Json& config, const std::string& where) {
  if (!config.contains("init_lora_weights")) return;
  const Json& value = config["init_lora_weights"];
  if (value.is_null() || value.is_boolean()) return;
  if (!value.is_string()) refuse(where, "init_lora_weights: neither a boolean nor a string");
  const std::string init = ascii_lower_case(value.get<std::string>());
  if (init == "gaussian" || init == "eva" || init == "orthogonal" || init == "mica") return;
  if (init == "loftq")
    refuse(
        where,
        "init_lora_weights = \"loftq\": the adapter belongs to a base that LoftQ quantised. Save "
        "that base in PEFT (model.unload().save_pretrained), set init_lora_weights to true here "
        "and use the saved base as --model");
  if (init.starts_with("pissa") || init == "olora" || init.starts_with("corda") ||
      init == "lora_ga")
    refuse(
        where, "init_lora_weights = ", printable(value.get<std::string>()),
        ": this initialisation changes the base's matrices, so the file alone is not a plain LoRA "
        "adapter. Convert it in PEFT: model.save_pretrained(FOLDER, "
        "path_initial_model_for_weight_conversion=INITIAL_ADAPTER)");
  refuse(where, "init_lora_weights = ", printable(value.get<std::string>()), " is not known");
}

// A list of names, or one string, which stands alone in the result.
std::vector<std::string> strings(const Json& config, const char* key, const std::string& where) {
  const Json& value = config[key];
  if (value.is_string()) return {value.get<std::string>()};
  std::vector<std::string> all;
  if (!value.is_array()) refuse(where, key, ": neither a list of strings nor a string");
  for (const Json& name : value) {
    if (!name.is_string()) refuse(where, key, ": not a list of strings");
    all.push_back(name.get<std::string>());
  }
  return all;
}

double alpha_of(const Json& value, const std::string& where, const std::string& key) {
  if (!value.is_number()) refuse(where, key, ": a number is expected");
  const double alpha = value.get<double>();
  if (!std::isfinite(alpha) || alpha <= 0) refuse(where, key, ": must be positive, got ", alpha);
  return alpha;
}

// The number of a segment of digits; none for other segments.
std::optional<std::int64_t> layer_number(std::string_view segment) {
  std::int64_t number = 0;
  const auto [end, error] =
      std::from_chars(segment.data(), segment.data() + segment.size(), number);
  const bool whole = error == std::errc() && end == segment.data() + segment.size();
  return whole && segment.front() != '-' ? std::optional(number) : std::nullopt;
}

}  // namespace

PeftConfig::PeftConfig(const std::string& path) : path_(path) {
  const std::string text = read_json_text(path, kMostBytes);
  const Json config = parse_json(text, path);
  if (!config.is_object()) refuse(path, "not a JSON object");
  if (std::string type = json_string(config, "peft_type", path); type != "LORA")
    refuse(path, "peft_type ", printable(type),
           " is not supported (LORA, PROMPT_TUNING, PREFIX_TUNING, ADAPTION_PROMPT, BEFT and IA3 "
           "are)");
  refuse_unknown(config, path);
  check_init(config, path);
  json_bool_or(config, "fan_in_fan_out", false, path);
  if (given(config, "base_model_name_or_path"))
    base_model_ = json_string(config, "base_model_name_or_path", path);
  base_fingerprint_ = json_string_or(config, "lorikeet_base_sha256", "", path);
  read_shape(config);
  read_modules(config);
  read_layers(config);
  read_patterns(config, text);
}

void PeftConfig::read_shape(const Json& config) {
  shape_.rank = json_int_or(config, "r", 8, 1, 65536, path_);
  if (config.contains("lora_alpha"))
    shape_.alpha = alpha_of(config["lora_alpha"], path_, "lora_alpha");
  shape_.rslora = json_bool_or(config, "use_rslora", false, path_);
  shape_.dora = given(config, "use_dora") && json_bool_or(config, "use_dora", false, path_);
  const double dropout = json_number_or(config, "lora_dropout", 0, path_);
  shape_.dropout = static_cast<float>(dropout);
  if (!(dropout >= 0 && shape_.dropout < 1))
    refuse(path_, "lora_dropout: must be in [0, 1), got ", dropout);
}

PeftConfig::Modules PeftConfig::modules(const Json& config, const char* key) const {
  Modules m;
  if (config[key].is_string())
    m.pattern.emplace(config[key].get<std::string>(), PathPattern::Match::Whole,
                      concat(path_, ": ", key));
  else
    m.names = strings(config, key, path_);
  return m;
}

void PeftConfig::read_modules(const Json& config) {
  if (config.contains("target_modules") && !config["target_modules"].is_null()) {
    target_modules_ = strings(config, "target_modules", path_);
    all_ = config["target_modules"].is_string() &&
           ascii_lower_case(config["target_modules"].get<std::string>()) == "all-linear";
    if (!all_) targets_ = modules(config, "target_modules");
  } else {
    targets_.names = {"q_proj", "v_proj", "c_attn"};  // default_targets() of every family
  }
  if (given(config, "exclude_modules")) excluded_ = modules(config, "exclude_modules");
  if (given(config, "modules_to_save"))
    modules_to_save_ = strings(config, "modules_to_save", path_);
}

void PeftConfig::read_layers(const Json& config) {
  const bool layers = given(config, "layers_to_transform");
  if (given(config, "layers_pattern")) {
    if (!layers) refuse(path_, "layers_pattern: needs layers_to_transform");
    for (const std::string& text : strings(config, "layers_pattern", path_))
      layers_pattern_.emplace_back(text, PathPattern::Match::Tail, path_ + ": layers_pattern");
  }
  if (!layers) return;
  if (config.contains("target_modules") && config["target_modules"].is_string())
    refuse(path_, "layers_to_transform: needs a list of names as target_modules");
  const Json& value = config["layers_to_transform"];
  for (const Json& layer : value.is_array() ? value : Json::array({value})) {
    if (!layer.is_number_unsigned() || layer.get<std::uint64_t>() > 1'000'000)
      refuse(path_, "layers_to_transform: neither a layer's number nor a list of them");
    layers_.push_back(layer.get<std::int64_t>());
  }
}

// The first key that matches counts, so the keys are wanted in the file's order, which Json loses.
void PeftConfig::read_patterns(const Json& config, const std::string& text) {
  if (!given(config, "rank_pattern") && !given(config, "alpha_pattern")) return;
  const OrderedJson ordered = OrderedJson::parse(text);
  auto read = [&](const char* key, auto& patterns, auto&& value_of) {
    if (!given(config, key)) return;
    if (!config[key].is_object()) refuse(path_, key, ": not an object");
    for (const auto& [module, ignored] : ordered[key].items())
      patterns.emplace_back(PathPattern(module, PathPattern::Match::Tail, concat(path_, ": ", key)),
                            value_of(config[key], module));
  };
  read("rank_pattern", ranks_, [&](const Json& all, const std::string& module) {
    return json_int(all, module, 1, 65536, path_ + ": rank_pattern");
  });
  read("alpha_pattern", alphas_, [&](const Json& all, const std::string& module) {
    return alpha_of(all[module], path_ + ": alpha_pattern", printable(module));
  });
}

bool PeftConfig::Modules::match(const std::string& path) const {
  if (pattern) return pattern->matches(path);
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return target_matches(path, name); });
}

// The layer's number is the first segment of digits that has two segments before it, or whose
// preceding segments layers_pattern matches: 3 in "model.layers.3.mlp.up_proj".
bool PeftConfig::in_layers(const std::string& path) const {
  auto first_number = [&](auto&& fits) -> std::optional<std::int64_t> {
    for (std::size_t dot = path.find('.'); dot != path.npos; dot = path.find('.', dot + 1)) {
      const std::size_t end = path.find('.', dot + 1);
      if (end == path.npos) break;
      const auto number = layer_number(std::string_view(path).substr(dot + 1, end - dot - 1));
      if (number && fits(path.substr(0, dot))) return number;
    }
    return std::nullopt;
  };
  std::optional<std::int64_t> layer;
  if (layers_pattern_.empty())
    layer = first_number([](const std::string& before) { return before.find('.') != before.npos; });
  for (const PathPattern& pattern : layers_pattern_)
    if (!layer)
      layer = first_number([&](const std::string& before) { return pattern.matches(before); });
  return layer && std::find(layers_.begin(), layers_.end(), *layer) != layers_.end();
}

bool PeftConfig::selects(const std::string& path) const {
  if (excluded_.match(path)) return false;
  if (!all_ && !targets_.match(path)) return false;
  // A whole path among the targets is meant whatever its layer.
  const bool named =
      std::find(targets_.names.begin(), targets_.names.end(), path) != targets_.names.end();
  return layers_.empty() || named || in_layers(path);
}

RankAlpha PeftConfig::rank_alpha(const std::string& path) const {
  auto first = [&](const auto& patterns, auto otherwise) {
    for (const auto& [pattern, value] : patterns)
      if (pattern.matches(path)) return value;
    return otherwise;
  };
  return {first(ranks_, shape_.rank), first(alphas_, shape_.alpha)};
}

}  // namespace lk
