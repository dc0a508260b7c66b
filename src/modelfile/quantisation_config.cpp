#include "modelfile/quantisation_config.h"

#include <algorithm>
#include <array>
#include <map>
#include <span>
#include <string_view>

#include "io/config_keys.h"
#include "io/json.h"
#include "io/paths.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {
namespace {

using Method = QuantisationConfig::Method;
using Keys = std::span<const std::string_view>;

constexpr std::string_view kBitsandbytesKeys[] = {"quant_method",
                                                  "load_in_4bit",
                                                  "_load_in_4bit",
                                                  "load_in_8bit",
                                                  "_load_in_8bit",
                                                  "bnb_4bit_compute_dtype",
                                                  "bnb_4bit_quant_storage",
                                                  "bnb_4bit_quant_type",
                                                  "bnb_4bit_use_double_quant",
                                                  "llm_int8_enable_fp32_cpu_offload",
                                                  "llm_int8_has_fp16_weight",
                                                  "llm_int8_skip_modules",
                                                  "llm_int8_threshold"};

// Those on activations and caches change no weight.
constexpr std::string_view kFp8Keys[] = {
    "quant_method",      "fmt",          "weight_block_size",      "scale_fmt",
    "activation_scheme", "dequantize",   "modules_to_not_convert", "modules_to_convert",
    "ignored_layers",    "expert_dtype", "activation_scale_ub",    "kv_cache_scheme"};

constexpr std::string_view kCompressedKeys[] = {
    "quant_method", "format",          "config_groups",       "sparsity_config",
    "ignore",       "kv_cache_scheme", "quantization_status", "global_compression_ratio",
    "version",      "run_compressed",  "dequantize",          "use_optimized_inference",
    "provider"};
constexpr std::string_view kGroupKeys[] = {"targets", "weights", "input_activations",
                                           "output_activations", "format"};
constexpr std::string_view kWeightsKeys[] = {
    "num_bits", "type",     "symmetric",       "strategy",    "group_size", "block_structure",
    "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"};

// Of AWQ, GPTQ and AutoRound.
constexpr std::string_view kIntegerKeys[] = {
    "quant_method", "method", "bits", "w_bit", "group_size", "q_group_size", "groupsize", "format",
    "checkpoint_format", "version", "packing_format", "data_type", "backend", "desc_act", "dynamic",
    "extra_config",
    // which tensors tell; sym and zero_point are compared with them
    "sym", "zero_point", "pack_dtype", "scale_dtype", "lm_head", "modules_to_not_convert",
    "modules_in_block_to_quantize", "block_name_to_quantize", "to_quant_block_names",
    "module_name_preceding_first_block", "quant_block_list", "model_file_base_name",
    // on activations, and on how to run the model
    "act_bits", "act_data_type", "act_group_size", "act_sym", "act_dynamic", "do_fuse",
    "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "use_exllama", "disable_exllama",
    "use_cuda_fp16", "max_input_length", "cache_block_outputs",
    // on how the codes were found
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "act_group_aware",
    "mse", "dataset", "tokenizer", "batch_size", "pad_token_id", "model_seqlen", "meta",
    "pack_impl", "model_name_or_path", "iters", "lr", "minmax_lr", "enable_minmax_tuning",
    "enable_quanted_input", "enable_norm_bias_tuning", "nsamples", "seqlen", "train_bs",
    "train_batch_size", "gradient_accumulate_steps", "low_gpu_mem_usage", "low_cpu_mem_usage",
    "amp", "model_free", "autoround_version", "provider"};

// In compressed-tensors' lists of modules: a regular expression, and what its groups call all of them.
constexpr std::string_view kExpression = "re:", kLinear = "Linear";

class Parser {
 public:
  Parser(const Json& quantisation, const std::string& where) : q_(quantisation), where_(where) {}

  QuantisationConfig go(bool from_mlx) {
    const std::string method = text(q_, "quant_method", four_bits() ? "bitsandbytes" : "");
    if (method == "bitsandbytes")
      bitsandbytes();
    else if (method == "fp8" || method == "fbgemm_fp8")
      fp8(method);
    else if (method == "compressed-tensors")
      compressed_tensors();
    else if (method == "awq")
      awq();
    else if (method == "gptq")
      gptq();
    else if (method == "auto-round")
      auto_round();
    else if (method.empty() && from_mlx)
      throw InputError(concat(where_, ": ", kNotMlx));
    else
      refuse(concat("quant_method ", printable(method), " is not read (bitsandbytes, fp8, ",
                    "compressed-tensors, awq, gptq and auto-round are)"));
    out_.where = where_;
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw InputError(concat(where_, ": ", what, ": ", kLoadInstead));
  }
  static bool given(const Json& json, const char* key) {
    return json.contains(key) && !json.at(key).is_null();
  }
  std::string text(const Json& json, const char* key, const std::string& otherwise) const {
    return given(json, key) ? json_string(json, key, where_) : otherwise;
  }
  bool flag(const Json& json, const char* key, bool otherwise) const {
    return given(json, key) ? json_bool_or(json, key, otherwise, where_) : otherwise;
  }
  bool four_bits() const {
    return flag(q_, "load_in_4bit", false) || flag(q_, "_load_in_4bit", false);
  }
  // An object of the config; `path` names it.
  void check_object(const Json& json, const std::string& path) const {
    if (!json.is_object()) refuse(concat(path, " is not an object"));
  }
  void check_keys(const Json& json, const std::string& path,
                  std::initializer_list<Keys> known) const {
    if (const auto key = unknown_key(json, known))
      refuse(concat(path, printable(key->key), " = ", key->value, " is unknown"));
  }
  // `json[key]`, if it is there, is one of `read`, in any case; otherwise it is the first of them.
  std::string choice(const Json& json, const char* key, const std::string& path,
                     std::initializer_list<const char*> read) const {
    std::string value = text(json, key, ""), list;
    std::transform(value.begin(), value.end(), value.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (value.empty()) return *read.begin();
    for (const char* one : read) {
      if (value == one) return value;
      list += concat(list.empty() ? "" : ", ", one);
    }
    refuse(concat(path, key, " ", printable(value), " is not read (", list, " is)"));
  }

  void dense_modules(const char* key, bool whole_path) {
    if (!q_.contains(key) || is_off(q_[key])) return;
    for (std::string& name : modules_of(q_, key, key))
      out_.dense.push_back({key, std::move(name), whole_path, {}});
  }
  // compressed-tensors' list, of paths and expressions.
  void ignored_modules() {
    dense_modules("ignore", true);
    for (DenseModule& dense : out_.dense) {
      if (!dense.name.starts_with(kExpression)) continue;
      try {
        dense.pattern = expression(dense.name, "ignore");
      } catch (const InputError&) {  // one that is not read names nothing: no number depends on it
      }
    }
  }
  PathPattern expression(const std::string& text, const char* key) const {
    return {text.substr(kExpression.size()), PathPattern::Match::Start, concat(where_, ": ", key)};
  }

  void bitsandbytes() {
    check_keys(q_, "", {kBitsandbytesKeys});
    if (flag(q_, "load_in_8bit", false) || flag(q_, "_load_in_8bit", false) || !four_bits())
      refuse("bitsandbytes in 8 bits (LLM.int8) is not read");
    if (!text(q_, "bnb_4bit_quant_type", "").empty()) {
      const bool nf4 = choice(q_, "bnb_4bit_quant_type", "", {"nf4", "fp4"}) == "nf4";
      out_.encodings = {nf4 ? Encoding::Nf4 : Encoding::Fp4};
    }
    if (given(q_, "bnb_4bit_use_double_quant"))
      out_.nested = flag(q_, "bnb_4bit_use_double_quant", false);
    dense_modules("llm_int8_skip_modules", false);
    out_.may_be_dense = false;
    out_.method = Method::Bitsandbytes;
  }

  void fp8(const std::string& method) {
    check_keys(q_, "", {kFp8Keys});
    choice(q_, "fmt", "", {"e4m3", "float8_e4m3fn"});
    out_.exponents = choice(q_, "scale_fmt", "", {"float", "ue8m0"}) == "ue8m0";
    if (method == "fbgemm_fp8") {
      out_.scales = {{1, 0}};
    } else if (q_.contains("weight_block_size")) {
      const Json& block = q_["weight_block_size"];
      if (!block.is_null() && block != Json({128, 128}))
        refuse("weight_block_size: only [128, 128] is read");
      out_.scales = {block.is_null() ? SharedScale{} : SharedScale{128, 128}};
    }
    dense_modules("modules_to_not_convert", false);
    dense_modules("ignored_layers", true);
    out_.may_be_dense = flag(q_, "dequantize", false);
    out_.method = Method::Fp8;
  }

  void compressed_tensors() {
    check_keys(q_, "", {kCompressedKeys});
    if (given(q_, "sparsity_config") && !is_off(q_["sparsity_config"])) {
      check_object(q_["sparsity_config"], "sparsity_config");
      choice(q_["sparsity_config"], "format", "sparsity_config.", {"dense"});
    }
    choice(q_, "format", "",
           {"float-quantized", "naive-quantized", "pack-quantized", "mixed-precision"});
    if (text(q_, "format", "").empty()) refuse("format is missing");
    bool asymmetric = false, symmetric = false;
    std::map<std::pair<int, std::string>, bool> targets;
    if (given(q_, "config_groups")) {
      check_object(q_["config_groups"], "config_groups");
      for (const auto& [name, group] : q_["config_groups"].items()) {
        const std::string path = concat("config_groups.", printable(name));
        check_object(group, path);
        check_keys(group, path + ".", {kGroupKeys});
        choice(group, "format", path + ".",
               {"float-quantized", "naive-quantized", "pack-quantized"});
        if (!given(group, "weights")) continue;  // activations alone
        check_object(group["weights"], path + ".weights");
        out_.may_be_dense = flag(q_, "dequantize", false);
        const bool zeros = group_has_zeros(group["weights"], path + ".weights.");
        (zeros ? asymmetric : symmetric) = true;
        for (const std::string& target : modules_of(group, "targets", path + ".targets"))
          targets[{place_of(target), target}] = zeros;
      }
    }
    ignored_modules();
    if (asymmetric != symmetric) out_.zero_points = asymmetric;
    if (asymmetric && symmetric) take_targets(targets);
    out_.method = Method::CompressedTensors;
  }

  // The names in `json[key]`, a list that `path` names; none if it is not there.
  std::vector<std::string> modules_of(const Json& json, const char* key,
                                      const std::string& path) const {
    std::vector<std::string> modules;
    if (!given(json, key)) return modules;
    if (!json[key].is_array()) refuse(path + ": a list of modules is expected");
    for (const Json& module : json[key]) {
      if (!module.is_string()) refuse(path + ": a list of modules is expected");
      modules.push_back(module.get<std::string>());
    }
    return modules;
  }

  // Of the targets that name a module, compressed-tensors takes a path before an expression and that
  // before a class, and of two expressions the one that sorts first.
  static int place_of(const std::string& target) {
    return target == kLinear ? 2 : target.starts_with(kExpression) ? 1 : 0;
  }
  void take_targets(const std::map<std::pair<int, std::string>, bool>& in_order) {
    for (const auto& [key, zeros] : in_order) {
      GroupTarget target{key.second, zeros};
      if (key.first == 1) target.pattern = expression(target.text, "config_groups: targets");
      out_.targets.push_back(std::move(target));
    }
  }

  // Takes down what shares a scale in a group of matrices; whether its codes have zero points.
  bool group_has_zeros(const Json& w, const std::string& path) {
    check_keys(w, path, {kWeightsKeys});
    const std::string type = choice(w, "type", path, {"int", "float"});
    const std::int64_t bits = given(w, "num_bits") ? json_int(w, "num_bits", 0, 64, where_) : 8;
    if (bits != (type == "int" ? 4 : 8))
      refuse(concat(path, "num_bits: weights of type ", type, " in ", bits, " bits are not read"));
    out_.encodings.push_back(type == "int" ? Encoding::Int4 : Encoding::Fp8);
    const bool symmetric = flag(w, "symmetric", true);
    if (!symmetric && type == "float") refuse(path + "symmetric: false is not read for float");
    if (given(w, "actorder") && w["actorder"] != false && w["actorder"] != "weight" &&
        w["actorder"] != "static")
      refuse(path + "actorder: columns in another order are not read");
    const std::int64_t group =
        given(w, "group_size") ? json_int(w, "group_size", -1, 1 << 30, where_) : 0;
    const std::string strategy =
        given(w, "strategy") ? choice(w, "strategy", path, {"tensor", "channel", "group", "block"})
        : group > 0          ? "group"
        : group < 0          ? "channel"
                             : "tensor";
    if (strategy == "block" &&
        !(w.contains("block_structure") && w["block_structure"] == Json({128, 128})))
      refuse(path + "block_structure: only [128, 128] is read");
    if (strategy == "group" && group == 0) refuse(path + "group_size is missing");
    out_.scales.push_back(strategy == "tensor"    ? SharedScale{0, 0}
                          : strategy == "channel" ? SharedScale{1, 0}
                          : strategy == "block"   ? SharedScale{128, 128}
                                                : SharedScale{1, std::max<std::int64_t>(group, 0)});
    return !symmetric;
  }

  // The keys that AWQ, GPTQ and AutoRound share. Codes of 4 bits have a shape of their own.
  void four_bit_groups(bool awq) {
    check_keys(q_, "", {kIntegerKeys});
    choice(q_, "data_type", "", {"int"});
    for (const char* key : {"bits", "w_bit"})
      if (given(q_, key) && json_int(q_, key, 0, 64, where_) != 4)
        refuse(concat(key, ": weights of other than 4 bits are not read"));
    for (const char* key : {"group_size", "q_group_size", "groupsize"})
      if (given(q_, key)) {
        const SharedScale of{1, std::max<std::int64_t>(json_int(q_, key, -1, 1 << 30, where_), 0)};
        if (!out_.scales.empty() && !(out_.scales[0] == of))
          refuse(concat(key, " is ", of.cols, ", but group_size ", out_.scales[0].cols));
        out_.scales = {of};
      }
    dense_modules("modules_to_not_convert", false);
    if (q_.contains("lm_head") && q_["lm_head"] == false)
      out_.dense.push_back({"lm_head", "lm_head", true, {}});
    out_.may_be_dense = false;
    // AWQ's own key is zero_point: transformers 5 writes sym = true beside it, whatever the codes are.
    const bool own = awq && given(q_, "zero_point");
    if (own ? !flag(q_, "zero_point", true) : flag(q_, "sym", false))
      out_.symmetric = own ? "zero_point is false" : "sym is true";
    for (const char* key : {"dynamic", "extra_config"})  // single modules may have other groups
      if (given(q_, key) && !is_off(q_[key])) out_.scales.clear(), out_.symmetric.clear();
  }

  void awq() {
    four_bit_groups(true);
    for (const char* key : {"version", "format", "checkpoint_format"})
      choice(q_, key, "", {"gemm"});
    if (text(q_, "backend", "") == "llm-awq") refuse("backend llm-awq is not read");
    out_.method = Method::Awq;
  }

  void gptq() {
    four_bit_groups(false);
    out_.reordered = flag(q_, "desc_act", false);
    std::string format;
    for (const char* key : {"checkpoint_format", "format"}) {
      if (text(q_, key, "").empty()) continue;
      const std::string value = choice(q_, key, "", {"gptq", "gptq_v2"});
      if (!format.empty() && value != format)
        refuse(concat("format is ", value, ", but checkpoint_format is ", format));
      format = value;
    }
    out_.gptq_zero_shift = format == "gptq_v2" ? 0 : 1;
    out_.method = Method::Gptq;
  }

  // AutoRound packs as one of the two does.
  void auto_round() {
    if (text(q_, "packing_format", "").empty()) refuse("packing_format is missing");
    const std::string packing =
        choice(q_, "packing_format", "", {"auto_round:auto_gptq", "auto_round:auto_awq"});
    packing == "auto_round:auto_awq" ? awq() : gptq();
  }

  const Json& q_;
  const std::string& where_;
  QuantisationConfig out_;
};

}  // namespace

std::string SharedScale::text() const {
  auto count = [](std::int64_t n, const char* what) {
    return n == 0 ? concat("all ", what, "s") : concat(n, " ", what, n == 1 ? "" : "s");
  };
  return concat(count(rows, "row"), " x ", count(cols, "column"));
}

bool DenseModule::names(const std::string& path) const {
  if (pattern) return pattern->matches(path);
  if (path == name) return true;
  if (whole_path || name.empty()) return false;
  return path.starts_with(name + ".") ||
         (name.find('.') == name.npos && path.ends_with("." + name));
}

std::optional<bool> QuantisationConfig::has_zero_points(const std::string& module) const {
  for (const GroupTarget& target : targets)
    if (target.pattern ? target.pattern->matches(module)
                       : target.text == module || target.text == kLinear)
      return target.zero_points;
  if (!targets.empty())
    throw InputError(concat(where, ": config_groups: no target names ", module,
                            ", so whether it has zero points is unknown: ", kLoadInstead));
  return zero_points;
}

const char* method_name(Method method) {
  constexpr std::array<const char*, 6> kNames = {
      "none", "bitsandbytes", "fp8", "compressed-tensors", "awq", "gptq"};
  return kNames[static_cast<std::size_t>(method)];
}

QuantisationConfig parse_quantisation(const Json& config, const std::string& outer) {
  if (!config.contains("quantization_config") || config["quantization_config"].is_null()) return {};
  const std::string where = outer + ": quantization_config";
  const Json& q = config["quantization_config"];
  if (!q.is_object()) throw InputError(where + ": not an object");
  return Parser(q, where).go(config.contains("quantization"));
}

QuantisationConfig read_own_quantisation(const std::string& folder) {
  const std::string gptq = "quantize_config.json", awq = "quant_config.json";
  const bool of_gptq = exists(folder + "/" + gptq), of_awq = exists(folder + "/" + awq);
  if (!of_gptq && !of_awq) return {};
  if (of_gptq && of_awq)
    throw InputError(concat(folder, ": ", gptq, " and ", awq,
                            " are both there, and config.json does not say which of them counts"));
  const std::string name = of_gptq ? gptq : awq, path = folder + "/" + name;
  Json own = read_json(path, std::size_t{1} << 20);
  if (!own.is_object()) throw InputError(path + ": not an object");
  if (!own.contains("quant_method")) own["quant_method"] = of_gptq ? "gptq" : "awq";
  QuantisationConfig config = Parser(own, path).go(false);
  config.file = name;
  return config;
}

}  // namespace lk
