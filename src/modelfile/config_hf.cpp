// Reads config.json of Hugging Face folders, as transformers 4 (rope_theta, rope_scaling,
// torch_dtype) and 5 (rope_parameters, dtype) write it.
#include <algorithm>
#include <limits>
#include <set>

#include "io/json.h"
#include "modelfile/config.h"
#include "modelfile/config_hf_parts.h"
#include "modelfile/stored_quantised.h"
#include "nn/field_error.h"

namespace lk {
namespace {

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
  if (given(json, "transformers_weights"))
    refuse(
        where, "transformers_weights: ", json["transformers_weights"].dump().substr(0, 200),
        " is not read: call the file model.safetensors, or model.safetensors.index.json if it is "
        "an index, and take the key out");
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
  const bool has_key = files.optional_window || files.default_window == 0;
  if (!used && has_key) window = 0;
  const std::size_t n = static_cast<std::size_t>(c.n_layers);
  std::vector<std::uint8_t> local(n, 1);
  if (files.optional_window) {  // the first max_window_layers see everything
    const std::int64_t first = json_int_or(json, "max_window_layers", 28, 0, kAnyInt, where);
    for (std::size_t i = 0; i < n; ++i) local[i] = static_cast<std::int64_t>(i) >= first;
  } else if (files.gemma_keys) {
    // transformers 5 writes the second name beside layer_types, and never reads it.
    const char *key = "sliding_window_pattern", *other = "_sliding_window_pattern";
    const std::int64_t pattern = json_int_or(json, key, kGemmaPattern, 1, kAnyInt, where);
    const std::int64_t unread = json_int_or(json, other, pattern, 1, kAnyInt, where);
    if (unread != pattern && !given(json, "layer_types"))
      refuse(where, other, ": ", unread, ", but transformers takes the pattern from ", key,
             ", which means ", pattern, " here");
    for (std::size_t i = 0; i < n; ++i) local[i] = (i + 1) % static_cast<std::size_t>(pattern) != 0;
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
  if (!used)
    refuse(where, "use_sliding_window: false, but ", c.architecture,
           " has no such key, and sliding_window, ", window, ", counts in transformers");
  c.window = window;
  c.local = std::move(local);
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

// validate(), whose errors then name GPT-2's keys.
void validate_gpt2(const Json& json, const ModelConfig& c, const std::string& where) {
  try {
    validate(c, where);
  } catch (const FieldError& e) {
    std::string key = e.field;
    for (auto [field, own] :
         {std::pair{"hidden_size", "n_embd"},
          {"intermediate_size", given(json, "n_inner") ? "n_inner" : "n_inner (4 * n_embd)"},
          {"num_hidden_layers (layers)", "n_layer"},
          {"num_attention_heads (query heads)", "n_head"},
          {"head_dim", "n_embd / n_head"},
          {"max_position_embeddings (context)", "n_positions"}})
      if (key == field) key = own;
    refuse(where, key, ": ", e.why);
  }
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
  c.learned_positions ? validate_gpt2(json, c, where) : validate(c, where);
  return c;
}

ModelConfig config_from_folder(const std::string& folder) {
  std::string path = folder + "/config.json";
  return config_from_json(read_json(path, std::size_t{1} << 20), path);
}

}  // namespace lk
