#include "methods/bottleneck_config.h"

#include <algorithm>
#include <cmath>

#include "io/checked.h"
#include "io/printable.h"

namespace lk {
namespace {

constexpr std::string_view kObeyedOfBottleneck[] = {
    "dropout",         "init_weights",     "is_parallel",        "leave_out",
    "mh_adapter",      "non_linearity",    "original_ln_after",  "original_ln_before",
    "output_adapter",  "reduction_factor", "residual_before_ln", "scaling",
    "stochastic_depth"};
// Read only where a key that is refused is on (a norm of the adapter's own, hypercomplex layers), or
// by whoever makes the first values.
constexpr std::string_view kHarmlessInBottleneck[] = {"adapter_residual_before_ln",
                                                      "factorized_phm_W",
                                                      "factorized_phm_rule",
                                                      "hypercomplex_nonlinearity",
                                                      "init_weights_seed",
                                                      "inv_adapter_reduction_factor",
                                                      "learn_phm",
                                                      "phm_bias",
                                                      "phm_c_init",
                                                      "phm_dim",
                                                      "phm_init_range",
                                                      "phm_rank",
                                                      "shared_W_phm",
                                                      "shared_phm_rule"};

struct Name {
  const char* text;
  Activation activation;
};
// adapters' names are those of transformers' activations. Its "gelu" is the exact form, not ours.
constexpr Name kActivations[] = {{"relu", Activation::Relu},
                                 {"swish", Activation::Silu},
                                 {"silu", Activation::Silu},
                                 {"gelu_new", Activation::Gelu},
                                 {"gelu_pytorch_tanh", Activation::Gelu}};
constexpr const char* kInits[] = {"bert", "mam_adapter", "houlsby"};  // as Init

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const Args&... message) {
  throw InputError(concat(where, ": config: ", message...));
}

// Whether a flag is on; `other` is what its default would be.
bool flag(const Json& config, const char* key, bool other, const std::string& where) {
  return json_bool_or(config, key, other, where + ": config");
}

// Python's int(hidden_size // factor), at least 1.
std::int64_t rows_of(std::int64_t hidden_size, const Json& factor, const std::string& where) {
  if (!factor.is_number()) refuse(where, "reduction_factor: not a number");
  const double f = factor.get<double>(), width = static_cast<double>(hidden_size);
  if (!(f > 0) || !std::isfinite(f)) refuse(where, "reduction_factor: must be positive");
  const double rows = std::floor((width - std::fmod(width, f)) / f + 0.5);
  const auto whole = to_integer(rows, 0, 1 << 24);
  if (!whole) refuse(where, "reduction_factor: ", f, " makes ", rows, " rows");
  return std::max<std::int64_t>(*whole, 1);
}

std::vector<std::int64_t> read_sizes(const Json& config, std::int64_t hidden_size,
                                     std::int64_t layers, const std::string& where) {
  const Json& factor = json_at(config, "reduction_factor", where + ": config");
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(layers));
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::string layer = std::to_string(i);
    if (!factor.is_object())
      sizes[i] = rows_of(hidden_size, factor, where);
    else if (factor.contains(layer) || factor.contains("default"))
      sizes[i] = rows_of(hidden_size, factor[factor.contains(layer) ? layer : "default"], where);
    else
      refuse(where, "reduction_factor: says nothing of layer ", layer);
  }
  if (config.contains("leave_out") && !is_off(config["leave_out"])) {
    if (!config["leave_out"].is_array()) refuse(where, "leave_out: not a list of layers");
    for (const Json& layer : config["leave_out"]) {
      if (!layer.is_number_unsigned()) refuse(where, "leave_out: not a list of layers");
      if (layer.get<std::uint64_t>() < sizes.size()) sizes[layer.get<std::size_t>()] = 0;
    }
  }
  return sizes;
}

// v, and that the sum is x + h + what the adapter makes: adapters can leave h or x out, or add them
// twice.
BottleneckConfig::Input read_input(const Json& config, const std::string& where) {
  const bool before = flag(config, "original_ln_before", false, where),
             after = flag(config, "original_ln_after", true, where);
  const Json residual = config.value("residual_before_ln", Json(true));
  if (flag(config, "is_parallel", false, where)) {
    if (!after) refuse(where, "original_ln_after = false is not supported");
    return BottleneckConfig::Input::Residual;
  }
  if (!residual.is_boolean()) refuse(where, "residual_before_ln: only true or false is supported");
  const bool once = after ? residual == true || !before : before && residual == false;
  if (!once)
    refuse(where,
           "original_ln_before, original_ln_after and residual_before_ln: together they do "
           "not add the sublayer and the residual stream once");
  return before ? BottleneckConfig::Input::Sum : BottleneckConfig::Input::Sublayer;
}

}  // namespace

BottleneckConfig read_bottleneck_config(const Json& config, std::int64_t hidden_size,
                                        std::int64_t layers, const std::string& where) {
  if (!config.is_object()) refuse(where, "not an object");
  refuse_unknown(config, kObeyedOfBottleneck, kHarmlessInBottleneck, where + ": config",
                 "only plain bottleneck adapters are");
  BottleneckConfig c;
  c.input = read_input(config, where);
  c.after_attention = flag(config, "mh_adapter", false, where);
  c.after_mlp = flag(config, "output_adapter", false, where);
  if (!c.after_attention && !c.after_mlp)
    refuse(where, "mh_adapter and output_adapter: neither is on");
  const std::string activation = json_string(config, "non_linearity", where + ": config");
  const auto* known = std::find_if(std::begin(kActivations), std::end(kActivations),
                                   [&](const Name& n) { return activation == n.text; });
  if (known == std::end(kActivations))
    refuse(where, "non_linearity = ", printable(activation),
           " is not supported, only relu, swish and gelu_new");
  c.activation = known->activation;
  if (config.contains("scaling")) {
    if (!config["scaling"].is_number())
      refuse(where, "scaling: only a number is supported, no learned scale");
    c.scale = config["scaling"].get<double>();
    if (!std::isfinite(c.scale)) refuse(where, "scaling: not finite");
  }
  const std::string init = json_string_or(config, "init_weights", "bert", where + ": config");
  const auto* at = std::find(std::begin(kInits), std::end(kInits), init);
  if (at == std::end(kInits)) refuse(where, "init_weights = ", printable(init), " is not known");
  c.init = static_cast<BottleneckConfig::Init>(at - std::begin(kInits));
  const double dropout = json_number_or(config, "dropout", 0, where + ": config");
  if (!(dropout >= 0 && dropout < 1)) refuse(where, "dropout: must be in [0, 1), got ", dropout);
  c.dropout = static_cast<float>(dropout);
  if (json_number_or(config, "stochastic_depth", 0, where + ": config") != 0)
    refuse(where, "stochastic_depth: only 0 is supported");
  c.sizes = read_sizes(config, hidden_size, layers, where);
  return c;
}

Json bottleneck_config_json(const BottleneckConfig& c, std::int64_t hidden_size,
                            std::int64_t layers) {
  Json factors = Json::object(), left_out = Json::array();
  bool equal = true;
  Json first;
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::int64_t rows = c.size_of(static_cast<std::size_t>(i));
    if (rows == 0) {
      left_out.push_back(i);
      continue;
    }
    // Half a row more than there are where no whole factor gives them: rounding can't lose the last.
    const std::int64_t whole = hidden_size / rows;
    const Json factor =
        whole > 0 && hidden_size / whole == rows
            ? Json(whole)
            : Json(static_cast<double>(hidden_size) / (static_cast<double>(rows) + 0.5));
    factors[std::to_string(i)] = factor;
    if (first.is_null()) first = factor;
    equal = equal && factor == first;
  }
  factors["default"] = first;
  const char* activation = c.activation == Activation::Relu   ? "relu"
                           : c.activation == Activation::Silu ? "swish"
                                                              : "gelu_new";
  const bool parallel = c.input == BottleneckConfig::Input::Residual;
  return {{"adapter_residual_before_ln", false},
          {"cross_adapter", false},
          {"dropout", static_cast<double>(c.dropout)},
          {"factorized_phm_W", true},
          {"factorized_phm_rule", false},
          {"hypercomplex_nonlinearity", "glorot-uniform"},
          {"init_weights", kInits[static_cast<std::size_t>(c.init)]},
          {"init_weights_seed", nullptr},
          {"inv_adapter", nullptr},
          {"inv_adapter_reduction_factor", nullptr},
          {"is_parallel", parallel},
          {"learn_phm", true},
          {"leave_out", left_out},
          {"ln_after", false},
          {"ln_before", false},
          {"mh_adapter", c.after_attention},
          {"non_linearity", activation},
          {"original_ln_after", true},
          {"original_ln_before", c.input == BottleneckConfig::Input::Sum},
          {"output_adapter", c.after_mlp},
          {"phm_bias", true},
          {"phm_c_init", "normal"},
          {"phm_dim", 4},
          {"phm_init_range", 0.0001},
          {"phm_layer", false},
          {"phm_rank", 1},
          {"reduction_factor", equal ? first : factors},
          {"residual_before_ln", true},
          {"scaling", c.scale},
          {"shared_W_phm", false},
          {"shared_phm_rule", true},
          {"stochastic_depth", 0.0},
          {"use_gating", false}};
}

}  // namespace lk
