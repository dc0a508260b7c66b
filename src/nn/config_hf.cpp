// config.json of Hugging Face folders, as transformers 4 (rope_theta, rope_scaling, torch_dtype)
// and 5 (rope_parameters, dtype) write it.
#include <algorithm>
#include <array>
#include <limits>

#include "io/json.h"
#include "nn/config.h"

namespace lk {
namespace {

constexpr std::int64_t kAnyInt = std::int64_t{1} << 40;  // validate() has the real bounds

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const Args&... message) {
  throw InputError(concat(where, ": ", message...));
}

// Absent and null mean the same in config.json wherever null is allowed at all.
bool given(const Json& json, const char* key) {
  auto it = json.find(key);
  return it != json.end() && !it->is_null();
}

// What differs between the architectures that share LLaMA's decoder: class name and defaults.
struct Family {
  const char* model_type;
  const char* class_name;
  std::int64_t default_max_position;
  bool kv_heads_default_to_heads;
  bool window_is_default;  // an absent sliding_window means 4096, not none
};
constexpr std::array<Family, 3> kFamilies = {{
    {"llama", "LlamaForCausalLM", 2048, true, false},
    {"mistral", "MistralForCausalLM", 131072, false, true},
    {"qwen2", "Qwen2ForCausalLM", 32768, false, false},
}};

const Family& find_family(const Json& json, const std::string& where) {
  std::string type = json_string(json, "model_type", where);
  for (const Family& f : kFamilies) {
    if (type != f.model_type) continue;
    if (given(json, "architectures")) {
      const Json& list = json["architectures"];
      if (!list.is_array() || list.size() != 1 || list[0] != f.class_name)
        refuse(where, "architectures: ", list.dump().substr(0, 200), " is not [\"", f.class_name,
               "\"], the only one supported for model_type '", type, "'");
    }
    return f;
  }
  refuse(where, "model_type: '", type, "' is not supported (llama, mistral, qwen2 are)");
}

// Fields that change the maths, with the values that switch them off. See Note [Refuse, never
// default].
void refuse_unsupported(const Json& json, const std::string& where) {
  static const std::vector<std::pair<const char*, Json>> kNeutral = {
      {"partial_rotary_factor", {1}},
      {"rotary_pct", {1}},
      {"rope_interleaved", {false}},
      {"rope_local_base_freq", Json::array()},
      {"no_rope_layers", Json::array()},
      {"no_rope_layer_interval", {0}},
      {"attn_logit_softcapping", Json::array()},
      {"final_logit_softcapping", Json::array()},
      {"query_pre_attn_scalar", Json::array()},
      {"attention_multiplier", Json::array()},
      {"attn_temperature_tuning", {false, 0}},
      {"residual_multiplier", {1}},
      {"embedding_multiplier", {1}},
      {"logits_scaling", {1}},
      {"logit_scale", {1}},
      {"scale_emb", {1}},
      {"scale_depth", Json::array()},
      {"clip_qkv", Json::array()},
      {"use_qk_norm", {false}},
      {"qk_norm", {false}},
      {"qk_layernorm", {false}},
      {"alibi", {false}},
      {"is_causal", {true}},
      {"use_bidirectional_attention", {false}},
      {"is_encoder_decoder", {false}},
      {"add_cross_attention", {false}},
      {"attention_dropout", {0}},
      {"hidden_dropout", {0}},
      {"num_local_experts", {0, 1}},
      {"num_experts", {0, 1}},
      {"n_routed_experts", {0}},
      {"pruned_heads", {Json::object()}},
      {"quantization_config", Json::array()},
      {"compression_config", Json::array()},
      {"text_config", Json::array()},
      {"vision_config", Json::array()},
      {"auto_map", Json::array()},  // the model's own Python code
  };
  for (const auto& [key, neutral] : kNeutral) {
    if (!given(json, key)) continue;
    const Json& value = json[key];
    if (std::none_of(neutral.begin(), neutral.end(), [&](const Json& n) { return n == value; }))
      refuse(where, key, ": ", value.dump().substr(0, 200), " is not supported");
  }
}

void check_window(const Json& json, const Family& family, const ModelConfig& c,
                  const std::string& where) {
  if (given(json, "layer_types")) {
    const Json& types = json["layer_types"];
    if (!types.is_array()) refuse(where, "layer_types: not an array");
    for (const Json& type : types)
      if (type != "full_attention")
        refuse(where, "layer_types: ", type.dump().substr(0, 100), " is not supported");
  }
  bool qwen2 = std::string(family.model_type) == "qwen2";
  bool used = json_bool_or(json, "use_sliding_window", !qwen2, where);
  if (!used) return;
  std::int64_t window = 0;  // none
  if (given(json, "sliding_window"))
    window = json_int(json, "sliding_window", 1, kAnyInt, where);
  else if ((family.window_is_default && !json.contains("sliding_window")) || qwen2)
    window = 4096;
  // A window at least as long as the context hides nothing.
  if (window > 0 && window < c.max_position)
    refuse(where, "sliding_window: ", window, " (context ", c.max_position, ") is not supported");
}

// rope_scaling of v4, rope_parameters of v5: every field must be one that its type is known to
// have.
RopeScaling parse_rope(const Json& rope, const char* field, const std::string& where) {
  if (!rope.is_object()) refuse(where, field, ": not an object");
  const std::string inner = where + ": " + field;
  std::string type = "default";
  if (given(rope, "type")) type = json_string(rope, "type", inner);
  if (given(rope, "rope_type")) {
    std::string newer = json_string(rope, "rope_type", inner);
    if (given(rope, "type") && newer != type)
      refuse(inner, "type '", type, "' and rope_type '", newer, "' disagree");
    type = newer;
  }
  std::vector<std::string> allowed = {"type", "rope_type", "rope_theta"};
  RopeScaling s;
  if (type == "default") {
    s.kind = RopeScaling::Kind::None;
  } else if (type == "linear") {
    s.kind = RopeScaling::Kind::Linear;
    s.factor = json_number(rope, "factor", inner);
    allowed.insert(allowed.end(), {"factor", "original_max_position_embeddings"});
  } else if (type == "llama3") {
    s.kind = RopeScaling::Kind::Llama3;
    s.factor = json_number(rope, "factor", inner);
    s.low_freq_factor = json_number(rope, "low_freq_factor", inner);
    s.high_freq_factor = json_number(rope, "high_freq_factor", inner);
    s.original_max_position = json_int(rope, "original_max_position_embeddings", 1, kAnyInt, inner);
    allowed.insert(allowed.end(), {"factor", "low_freq_factor", "high_freq_factor",
                                   "original_max_position_embeddings"});
  } else {
    refuse(inner, "rope_type: '", type, "' is not supported (default, linear, llama3 are)");
  }
  for (const auto& [key, value] : rope.items()) {
    if (value.is_null()) continue;
    if (key == "partial_rotary_factor" && value == 1) continue;
    if (std::find(allowed.begin(), allowed.end(), key) == allowed.end())
      refuse(inner, key, ": not supported for rope_type '", type, "'");
  }
  return s;
}

bool same_scaling(const RopeScaling& a, const RopeScaling& b) {
  return a.kind == b.kind && a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
         a.high_freq_factor == b.high_freq_factor &&
         a.original_max_position == b.original_max_position;
}

void parse_rope_fields(const Json& json, ModelConfig& c, const std::string& where) {
  c.rope_theta = json_number_or(json, "rope_theta", 10000.0, where);
  bool old_style = given(json, "rope_scaling"), new_style = given(json, "rope_parameters");
  if (old_style) c.rope_scaling = parse_rope(json["rope_scaling"], "rope_scaling", where);
  if (!new_style) return;
  const Json& rope = json["rope_parameters"];
  RopeScaling scaling = parse_rope(rope, "rope_parameters", where);
  if (old_style && !same_scaling(scaling, c.rope_scaling))
    refuse(where, "rope_scaling and rope_parameters disagree");
  c.rope_scaling = scaling;
  if (!given(rope, "rope_theta")) return;
  double theta = json_number(rope, "rope_theta", where + ": rope_parameters");
  if (given(json, "rope_theta") && theta != c.rope_theta)
    refuse(where, "rope_theta ", c.rope_theta, " and rope_parameters.rope_theta ", theta,
           " disagree");
  c.rope_theta = theta;
}

std::string parse_dtype(const Json& json, const std::string& where) {
  const char* key = given(json, "dtype") ? "dtype" : "torch_dtype";
  if (!given(json, key)) return "";
  std::string dtype = json_string(json, key, where);
  static constexpr const char* kKnown[] = {"float64", "float32", "float16", "bfloat16"};
  if (std::none_of(std::begin(kKnown), std::end(kKnown), [&](auto k) { return dtype == k; }))
    refuse(where, key, ": '", dtype, "' is not a dtype that can be read");
  return dtype;
}

std::int32_t parse_id(const Json& json, const char* key, const std::string& where) {
  constexpr std::int64_t max = std::numeric_limits<std::int32_t>::max();
  if (!given(json, key)) return -1;
  return static_cast<std::int32_t>(json_int(json, key, 0, max, where));
}

std::vector<std::int32_t> parse_eos(const Json& json, const std::string& where) {
  if (!given(json, "eos_token_id")) return {};
  const Json& eos = json["eos_token_id"];
  if (!eos.is_array()) return {parse_id(json, "eos_token_id", where)};
  std::vector<std::int32_t> ids;
  for (const Json& id : eos) {
    Json wrapped = {{"eos_token_id", id}};
    if (id.is_null()) refuse(where, "eos_token_id: null in its list");
    ids.push_back(parse_id(wrapped, "eos_token_id", where));
  }
  return ids;
}

}  // namespace

ModelConfig config_from_json(const Json& json, const std::string& where) {
  if (!json.is_object()) refuse(where, "not a JSON object");
  const Family& family = find_family(json, where);
  auto size = [&](const char* key) { return json_int(json, key, 1, kAnyInt, where); };
  ModelConfig c;
  c.architecture = family.model_type;
  c.vocab_size = size("vocab_size");
  c.hidden_size = size("hidden_size");
  c.intermediate_size = size("intermediate_size");
  c.n_layers = size("num_hidden_layers");
  c.n_heads = size("num_attention_heads");
  c.n_kv_heads = given(json, "num_key_value_heads") || !family.kv_heads_default_to_heads
                     ? size("num_key_value_heads")
                     : c.n_heads;
  if (given(json, "head_dim")) {
    c.head_dim = size("head_dim");
  } else {
    if (c.hidden_size % c.n_heads != 0)
      refuse(where, "num_attention_heads: ", c.n_heads, " does not divide hidden_size ",
             c.hidden_size, ", and there is no head_dim");
    c.head_dim = c.hidden_size / c.n_heads;
  }
  for (const char* key : {"hidden_act", "hidden_activation", "activation_function"}) {
    if (!given(json, key)) continue;
    std::string act = json_string(json, key, where);
    if (act != "silu" && act != "swish")
      refuse(where, key, ": '", act, "' is not supported (silu is)");
  }
  c.rms_eps = json_number_or(json, "rms_norm_eps", 1e-6, where);
  c.max_position =
      json_int_or(json, "max_position_embeddings", family.default_max_position, 1, kAnyInt, where);
  c.tie_embeddings = json_bool_or(json, "tie_word_embeddings", false, where);
  bool qwen2 = c.architecture == "qwen2";
  bool bias = json_bool_or(json, "attention_bias", qwen2, where);
  if (c.architecture != "llama" && bias != qwen2)
    refuse(where, "attention_bias: ", bias ? "true" : "false", " is not supported for ",
           c.architecture);
  c.attention_bias = bias;
  c.attention_output_bias = bias && !qwen2;
  c.mlp_bias = json_bool_or(json, "mlp_bias", false, where);
  if (c.architecture != "llama" && c.mlp_bias)
    refuse(where, "mlp_bias: true is not supported for ", c.architecture);
  parse_rope_fields(json, c, where);
  refuse_unsupported(json, where);
  check_window(json, family, c, where);
  c.bos_id = parse_id(json, "bos_token_id", where);
  c.eos_ids = parse_eos(json, where);
  c.stored_dtype = parse_dtype(json, where);
  validate(c, where);
  return c;
}

ModelConfig config_from_folder(const std::string& folder) {
  std::string path = folder + "/config.json";
  return config_from_json(read_json(path, std::size_t{1} << 20), path);
}

Json config_to_json(const ModelConfig& c) {
  const Family* family = nullptr;
  for (const Family& f : kFamilies)
    if (c.architecture == f.model_type) family = &f;
  check(family != nullptr, "config_to_json: architecture '", c.architecture, "'");
  bool qwen2 = c.architecture == "qwen2";
  if (c.attention_output_bias != (c.attention_bias && !qwen2))
    throw UsageError("config.json has no words for biases on some of q, k, v, o only");
  Json j = {{"architectures", {family->class_name}},
            {"model_type", c.architecture},
            {"vocab_size", c.vocab_size},
            {"hidden_size", c.hidden_size},
            {"intermediate_size", c.intermediate_size},
            {"num_hidden_layers", c.n_layers},
            {"num_attention_heads", c.n_heads},
            {"num_key_value_heads", c.n_kv_heads},
            {"head_dim", c.head_dim},
            {"hidden_act", "silu"},
            {"rms_norm_eps", c.rms_eps},
            {"max_position_embeddings", c.max_position},
            {"tie_word_embeddings", c.tie_embeddings},
            {"rope_theta", c.rope_theta},
            {"use_cache", true},
            {"attention_dropout", 0.0},
            {"bos_token_id", nullptr},
            {"eos_token_id", nullptr}};
  if (c.architecture == "llama") {
    j["attention_bias"] = c.attention_bias;
    j["mlp_bias"] = c.mlp_bias;
  }
  if (c.architecture == "mistral") j["sliding_window"] = nullptr;
  if (qwen2) j["use_sliding_window"] = false;
  if (c.bos_id >= 0) j["bos_token_id"] = c.bos_id;
  if (c.eos_ids.size() == 1) j["eos_token_id"] = c.eos_ids[0];
  if (c.eos_ids.size() > 1) j["eos_token_id"] = c.eos_ids;

  // Version 5 reads rope_parameters, version 4 rope_theta and rope_scaling: both are written.
  Json scaling = nullptr;
  const RopeScaling& s = c.rope_scaling;
  switch (s.kind) {
    case RopeScaling::Kind::None:
      break;
    case RopeScaling::Kind::Linear:
      scaling = {{"rope_type", "linear"}, {"factor", s.factor}};
      break;
    case RopeScaling::Kind::Llama3:
      scaling = {{"rope_type", "llama3"},
                 {"factor", s.factor},
                 {"low_freq_factor", s.low_freq_factor},
                 {"high_freq_factor", s.high_freq_factor},
                 {"original_max_position_embeddings", s.original_max_position}};
      break;
    case RopeScaling::Kind::Factors:
      throw UsageError("config.json has no words for these rope factors (rope_freqs.weight)");
  }
  j["rope_scaling"] = scaling;
  j["rope_parameters"] = scaling.is_null() ? Json{{"rope_type", "default"}} : scaling;
  j["rope_parameters"]["rope_theta"] = c.rope_theta;
  for (const char* dtype : {"float32", "float16", "bfloat16"})
    if (c.stored_dtype == dtype) j["torch_dtype"] = j["dtype"] = dtype;
  return j;
}

}  // namespace lk
