// Reads config.json of Hugging Face folders, as transformers 4 (rope_theta, rope_scaling,
// torch_dtype) and 5 (rope_parameters, dtype) write it.
#include <algorithm>
#include <limits>
#include <set>

#include "io/json.h"
#include "modelfile/config.h"
#include "modelfile/family_files.h"
#include "modelfile/stored_quantised.h"

namespace lk {
namespace {

constexpr std::int64_t kAnyInt = std::int64_t{1} << 40;  // validate() has the real bounds

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const Args&... message) {
  throw InputError(concat(where, ": ", message...));
}

// Whether config.json says anything: a null means as much as an absent key, wherever it is allowed.
bool given(const Json& json, const char* key) {
  auto it = json.find(key);
  return it != json.end() && !it->is_null();
}

const Family& read_family(const Json& json, const std::string& where) {
  std::string type = json_string(json, "model_type", where);
  const Family* f = find_family(type);
  if (!f) refuse(where, "model_type: '", type, "' is not supported (", known_families(), " are)");
  const char* class_name = files_of(*f).class_name;
  if (given(json, "architectures")) {
    const Json& list = json["architectures"];
    if (!list.is_array() || list.size() != 1 || list[0] != class_name)
      refuse(where, "architectures: ", list.dump().substr(0, 200), " is not [\"", class_name,
             "\"], the only one supported for model_type '", type, "'");
  }
  return *f;
}

// Fields that change the maths, with the values that switch them off. See Note [Refuse, never
// default]. GPT-2's attn_pdrop, embd_pdrop and resid_pdrop are no such fields: a frozen model drops
// nothing, and LoRA has its own dropout.
void refuse_unsupported(const Json& json, const FamilyFiles& files, const std::string& where) {
  // Vectors, not arrays of Json: those would take {Json::object()} for the object itself.
  static const std::vector<std::pair<const char*, std::vector<Json>>> kNeutral = {
      {"partial_rotary_factor", {1}},
      {"rotary_pct", {1}},
      {"rope_interleaved", {false}},
      {"rope_local_base_freq", {}},
      {"no_rope_layers", {}},
      {"no_rope_layer_interval", {0}},
      {"attn_logit_softcapping", {}},
      {"final_logit_softcapping", {}},
      {"query_pre_attn_scalar", {}},
      {"attention_multiplier", {}},
      {"attn_temperature_tuning", {false, 0}},
      {"residual_multiplier", {1}},
      {"embedding_multiplier", {1}},
      {"logits_scaling", {1}},
      {"logit_scale", {1}},
      {"scale_emb", {1}},
      {"scale_depth", {}},
      {"clip_qkv", {}},
      {"use_qk_norm", {false}},
      {"qk_norm", {false}},
      {"qk_layernorm", {false}},
      {"alibi", {false}},
      {"sliding_window_pattern", {}},
      {"_sliding_window_pattern", {}},
      {"scale_attn_weights", {true}},
      {"scale_attn_by_inverse_layer_idx", {false}},
      {"reorder_and_upcast_attn", {false}},
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
      {"compression_config", {}},
      {"text_config", {}},
      {"vision_config", {}},
      {"per_layer_config", {}},
      {"auto_map", {}},  // the model's own Python code
  };
  static const std::set<std::string> kGemma = {"rope_local_base_freq", "query_pre_attn_scalar",
                                               "sliding_window_pattern", "_sliding_window_pattern"};
  for (const auto& [key, neutral] : kNeutral) {
    if (!given(json, key) || (files.gemma_keys && kGemma.count(key))) continue;
    const Json& value = json[key];
    if (std::none_of(neutral.begin(), neutral.end(), [&](const Json& n) { return n == value; }))
      refuse(where, key, ": ", value.dump().substr(0, 200), " is not supported");
  }
}

// Reads which layers see a window of the last tokens, and how wide it is.
void parse_window(const Json& json, const FamilyFiles& files, ModelConfig& c,
                  const std::string& where) {
  std::int64_t window = 0;  // none
  if (given(json, "sliding_window"))
    window = json_int(json, "sliding_window", 1, kAnyInt, where);
  else if (!json.contains("sliding_window"))
    window = files.default_window;  // null is none
  const bool used = json_bool_or(json, "use_sliding_window", !files.optional_window, where);
  if (!used) window = 0;
  const std::size_t n = static_cast<std::size_t>(c.n_layers);
  std::vector<std::uint8_t> local(n, 1);
  if (files.optional_window) {  // the first max_window_layers see everything
    const std::int64_t first = json_int_or(json, "max_window_layers", 28, 0, kAnyInt, where);
    for (std::size_t i = 0; i < n; ++i) local[i] = static_cast<std::int64_t>(i) >= first;
  } else if (files.gemma_keys) {
    const char* key = given(json, "sliding_window_pattern") ? "sliding_window_pattern"
                                                            : "_sliding_window_pattern";
    const std::size_t pattern =
        static_cast<std::size_t>(json_int_or(json, key, 6, 1, kAnyInt, where));
    for (std::size_t i = 0; i < n; ++i) local[i] = (i + 1) % pattern != 0;
  }
  const bool mixed = files.gemma_keys || files.optional_window;  // layers may differ
  if (given(json, "layer_types")) {
    const Json& types = json["layer_types"];
    if (!types.is_array()) refuse(where, "layer_types: not an array");
    if (types.size() != n)
      refuse(where, "layer_types: ", types.size(), " of them for ", n, " layers");
    for (std::size_t i = 0; i < n; ++i) {
      local[i] = types[i] == "sliding_attention" ? 1 : 0;
      const bool known = types[i] == "full_attention" || (local[i] && mixed);
      if (!known || (!mixed && window > 0))
        refuse(where, "layer_types: ", types[i].dump().substr(0, 100), " is not supported");
      if (local[i] && window == 0)
        refuse(where, "layer_types: sliding_attention, but ",
               used ? "sliding_window is null" : "use_sliding_window is false");
    }
  }
  if (files.default_window == 0) {  // the family knows no window: one that hides nothing is none
    if (window > 0 && window < c.max_position)
      refuse(where, "sliding_window: ", window, " (context ", c.max_position,
             ") is not supported for ", c.architecture);
    return;
  }
  const bool any = std::count(local.begin(), local.end(), 1) > 0;
  if (files.gemma_keys && any && window == 0)
    refuse(where, "sliding_window: null, but layers are of type sliding_attention");
  if (window == 0 || !any) return;
  c.window = window;
  c.local = std::move(local);
}

// Reads rope_scaling of v4 or rope_parameters of v5: every field must be one that its type is known
// to have.
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

// `rope` with the length that llama3's scaling begins from, which may stand outside it: transformers reads it
// there first.
Json with_original_length(const Json& json, Json rope, const std::string& field,
                          const std::string& where) {
  constexpr const char* kKey = "original_max_position_embeddings";
  const auto is = [&](const char* key) {
    return given(rope, key) && rope[key].is_string() && rope[key] == "llama3";
  };
  if (!given(json, kKey) || !rope.is_object() || !(is("type") || is("rope_type"))) return rope;
  if (given(rope, kKey) && rope[kKey] != json[kKey])
    refuse(where, kKey, " and ", field, ".", kKey, " disagree");
  rope[kKey] = json[kKey];
  return rope;
}

bool same_scaling(const RopeScaling& a, const RopeScaling& b) {
  return a.kind == b.kind && a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
         a.high_freq_factor == b.high_freq_factor &&
         a.original_max_position == b.original_max_position;
}

void parse_rope_fields(const Json& json, const FamilyFiles& files, ModelConfig& c,
                       const std::string& where) {
  c.rope_theta = json_number_or(json, "rope_theta", files.default_theta, where);
  if (files.gemma_keys)
    c.local_rope_theta = json_number_or(json, "rope_local_base_freq", 1e4, where);
  bool old_style = given(json, "rope_scaling"), new_style = given(json, "rope_parameters");
  // Version 5 writes theta into `rope`; it counts if no older key says another.
  auto read = [&](const Json& rope, const std::string& field, const char* old_key, double& theta) {
    RopeScaling scaling =
        parse_rope(with_original_length(json, rope, field, where), field.c_str(), where);
    if (!given(rope, "rope_theta")) return scaling;
    const double newer = json_number(rope, "rope_theta", where + ": " + field);
    if (given(json, old_key) && newer != theta)
      refuse(where, old_key, " ", theta, " and ", field, ".rope_theta ", newer, " disagree");
    theta = newer;
    return scaling;
  };
  if (old_style)  // version 5 reads it as if it were the new key
    c.rope_scaling = read(json["rope_scaling"], "rope_scaling", "rope_theta", c.rope_theta);
  if (!new_style) return;
  const Json& rope = json["rope_parameters"];
  RopeScaling scaling;
  if (files.gemma_keys) {
    if (!rope.is_object()) refuse(where, "rope_parameters: not an object");
    for (const auto& [key, value] : rope.items())
      if (key != "full_attention" && key != "sliding_attention")
        refuse(where, "rope_parameters: ", key, ": not supported");
    scaling = read(json_at(rope, "full_attention", where + ": rope_parameters"),
                   "rope_parameters.full_attention", "rope_theta", c.rope_theta);
    RopeScaling local =
        read(json_at(rope, "sliding_attention", where + ": rope_parameters"),
             "rope_parameters.sliding_attention", "rope_local_base_freq", c.local_rope_theta);
    if (local.kind != RopeScaling::Kind::None)
      refuse(where,
             "rope_parameters.sliding_attention: rope_type other than default is not "
             "supported");
  } else {
    scaling = read(rope, "rope_parameters", "rope_theta", c.rope_theta);
  }
  if (old_style && !same_scaling(scaling, c.rope_scaling))
    refuse(where, "rope_scaling and rope_parameters disagree");
  c.rope_scaling = scaling;
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

namespace {

// Reads GPT-2's keys, which differ from all others'; only its sizes vary.
void parse_gpt2(const Json& json, ModelConfig& c, const std::string& where) {
  auto size = [&](const char* key) { return json_int(json, key, 1, kAnyInt, where); };
  c.hidden_size = size("n_embd");
  c.n_layers = size("n_layer");
  c.n_heads = c.n_kv_heads = size("n_head");
  if (c.hidden_size % c.n_heads != 0)
    refuse(where, "n_head: ", c.n_heads, " does not divide n_embd ", c.hidden_size);
  c.head_dim = c.hidden_size / c.n_heads;
  c.intermediate_size = given(json, "n_inner") ? size("n_inner") : 4 * c.hidden_size;
  c.max_position = json_int_or(json, "n_positions", 1024, 1, kAnyInt, where);
  c.rms_eps = json_number_or(json, "layer_norm_epsilon", 1e-5, where);
  c.attention_bias = c.attention_output_bias = c.mlp_bias = true;
  for (const char* key : {"sliding_window", "layer_types", "rope_scaling", "rope_parameters"})
    if (given(json, key)) refuse(where, key, ": not supported for gpt2");
  // transformers accepts other families' names for these keys, and prefers them to GPT-2's.
  for (auto [other, own] : {std::pair{"hidden_size", "n_embd"},
                            {"num_hidden_layers", "n_layer"},
                            {"num_attention_heads", "n_head"},
                            {"max_position_embeddings", "n_positions"}})
    if (given(json, other) && (!given(json, own) || json[other] != json[own]))
      refuse(where, other, ": ", json[other].dump().substr(0, 100), ", but ", own, " is ",
             given(json, own) ? json[own].dump().substr(0, 100) : "absent");
}

void parse_llama_like(const Json& json, const FamilyFiles& files, ModelConfig& c,
                      const std::string& where) {
  auto size = [&](const char* key) { return json_int(json, key, 1, kAnyInt, where); };
  c.hidden_size = size("hidden_size");
  c.intermediate_size = size("intermediate_size");
  c.n_layers = size("num_hidden_layers");
  c.n_heads = size("num_attention_heads");
  c.n_kv_heads = given(json, "num_key_value_heads") || !files.kv_heads_default_to_heads
                     ? size("num_key_value_heads")
                     : c.n_heads;
  if (given(json, "head_dim") || files.head_dim_required) {
    c.head_dim = size("head_dim");
  } else {
    if (c.hidden_size % c.n_heads != 0)
      refuse(where, "num_attention_heads: ", c.n_heads, " does not divide hidden_size ",
             c.hidden_size, ", and there is no head_dim");
    c.head_dim = c.hidden_size / c.n_heads;
  }
  c.rms_eps = json_number_or(json, "rms_norm_eps", 1e-6, where);
  c.max_position =
      json_int_or(json, "max_position_embeddings", files.default_max_position, 1, kAnyInt, where);
  validate_sizes(c, where);
  const bool bias = json_bool_or(json, "attention_bias", files.biased_qkv, where);
  if (!files.has_attention_bias_key && bias != files.biased_qkv)
    refuse(where, "attention_bias: ", bias ? "true" : "false", " is not supported for ",
           c.architecture);
  c.attention_bias = bias;
  c.attention_output_bias = bias && !files.biased_qkv;
  c.mlp_bias = json_bool_or(json, "mlp_bias", false, where);
  if (!files.has_mlp_bias_key && c.mlp_bias)
    refuse(where, "mlp_bias: true is not supported for ", c.architecture);
  parse_rope_fields(json, files, c, where);
  parse_window(json, files, c, where);
  if (!files.gemma_keys) return;
  c.query_scale = json_number(json, "query_pre_attn_scalar", where);
  if (!(c.query_scale > 0)) refuse(where, "query_pre_attn_scalar: must be positive");
}

void check_activation(const Json& json, MlpKind mlp, const std::string& where) {
  const bool silu = mlp == MlpKind::SwiGlu;
  for (const char* key : {"hidden_act", "hidden_activation", "activation_function"}) {
    if (!given(json, key)) continue;
    std::string act = json_string(json, key, where);
    // gelu_new and gelu_pytorch_tanh are one formula; plain "gelu" is another.
    const bool same =
        silu ? act == "silu" || act == "swish" : act == "gelu_new" || act == "gelu_pytorch_tanh";
    if (!same)
      refuse(where, key, ": '", act, "' is not supported (",
             silu ? "silu" : "gelu_pytorch_tanh, gelu_new", " is)");
  }
}

}  // namespace

ModelConfig config_from_json(const Json& json, const std::string& where) {
  if (!json.is_object()) refuse(where, "not a JSON object");
  const Family& family = read_family(json, where);
  const FamilyFiles& files = files_of(family);
  ModelConfig c;
  apply_family(c, family);
  c.vocab_size = json_int(json, "vocab_size", 1, kAnyInt, where);
  if (c.learned_positions)
    parse_gpt2(json, c, where);
  else
    parse_llama_like(json, files, c, where);
  check_activation(json, c.mlp, where);
  c.tie_embeddings = json_bool_or(json, "tie_word_embeddings", files.tied_by_default, where);
  refuse_unsupported(json, files, where);
  parse_quantisation(json, where);  // refuses what is not read
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

}  // namespace lk
