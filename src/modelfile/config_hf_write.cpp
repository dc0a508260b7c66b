// Writes config.json so that transformers 4 and 5 read it.
#include <algorithm>
#include <cmath>

#include "io/checked.h"
#include "io/json.h"
#include "modelfile/config.h"
#include "modelfile/family_files.h"

namespace lk {
namespace {

template <class... Args>
[[noreturn]] void refuse_in_json(const Args&... message) {
  throw UsageError(concat(message..., "; write a .gguf file instead"));
}

Json layer_types(const ModelConfig& c) {
  Json types = Json::array();
  for (std::size_t i = 0; i < static_cast<std::size_t>(c.n_layers); ++i)
    types.push_back(c.is_local(i) ? "sliding_attention" : "full_attention");
  return types;
}

void write_window(Json& j, const ModelConfig& c, const FamilyFiles& files) {
  const bool all = std::count(c.local.begin(), c.local.end(), 1) == c.n_layers;
  if (files.gemma_keys) {
    j["sliding_window"] = c.window > 0 ? Json(c.window) : Json(files.default_window);
    j["layer_types"] = layer_types(c);
  } else if (files.optional_window) {
    j["use_sliding_window"] = c.window > 0;
    if (c.window > 0) j["sliding_window"] = c.window, j["layer_types"] = layer_types(c);
  } else if (files.default_window > 0) {
    if (c.window > 0 && !all) refuse_in_json("config.json has no words for some local layers");
    j["sliding_window"] = c.window > 0 ? Json(c.window) : Json(nullptr);
  } else if (c.window > 0) {
    refuse_in_json("config.json has no words for a window of ", c.architecture);
  }
}

Json gpt2_to_json(const ModelConfig& c) {
  return {{"n_embd", c.hidden_size},
          {"n_inner", c.intermediate_size},
          {"n_layer", c.n_layers},
          {"n_head", c.n_heads},
          {"n_positions", c.max_position},
          {"n_ctx", c.max_position},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", c.rms_eps},
          {"attn_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"resid_pdrop", 0.0}};
}

Json llama_like_to_json(const ModelConfig& c, const FamilyFiles& files) {
  if (c.attention_output_bias != (c.attention_bias && !files.biased_qkv))
    refuse_in_json("config.json has no words for biases on some of q, k, v, o only");
  const char* act = c.mlp == MlpKind::SwiGlu ? "silu" : "gelu_pytorch_tanh";
  Json j = {{"hidden_size", c.hidden_size},
            {"intermediate_size", c.intermediate_size},
            {"num_hidden_layers", c.n_layers},
            {"num_attention_heads", c.n_heads},
            {"num_key_value_heads", c.n_kv_heads},
            {"head_dim", c.head_dim},
            {c.mlp == MlpKind::SwiGlu ? "hidden_act" : "hidden_activation", act},
            {"rms_norm_eps", c.rms_eps},
            {"max_position_embeddings", c.max_position},
            {"rope_theta", c.rope_theta},
            {"attention_dropout", 0.0}};
  if (files.has_attention_bias_key) j["attention_bias"] = c.attention_bias;
  if (files.has_mlp_bias_key) j["mlp_bias"] = c.mlp_bias;
  write_window(j, c, files);
  if (files.gemma_keys) {
    const double scale = c.query_scale > 0 ? c.query_scale : static_cast<double>(c.head_dim);
    j["query_pre_attn_scalar"] = scale;
    if (const auto whole = to_integer(scale, 0, std::int64_t{1} << 50);
        whole && static_cast<double>(*whole) == scale)
      j["query_pre_attn_scalar"] = *whole;
    j["rope_local_base_freq"] = c.local_rope_theta;
  }

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
      refuse_in_json("tensor rope_freqs.weight: config.json has no words for these rope factors");
  }
  j["rope_scaling"] = scaling;
  Json rope = scaling.is_null() ? Json{{"rope_type", "default"}} : scaling;
  rope["rope_theta"] = c.rope_theta;
  if (files.gemma_keys) {
    Json local = {{"rope_type", "default"}, {"rope_theta", c.local_rope_theta}};
    rope = {{"full_attention", rope}, {"sliding_attention", local}};
  }
  j["rope_parameters"] = rope;
  return j;
}

}  // namespace

Json config_to_json(const ModelConfig& c) {
  const FamilyFiles& files = files_of(c);
  Json j = c.learned_positions ? gpt2_to_json(c) : llama_like_to_json(c, files);
  j["architectures"] = {files.class_name};
  j["model_type"] = c.architecture;
  j["vocab_size"] = c.vocab_size;
  j["tie_word_embeddings"] = c.tie_embeddings;
  j["use_cache"] = true;
  j["bos_token_id"] = j["eos_token_id"] = nullptr;
  if (c.bos_id >= 0) j["bos_token_id"] = c.bos_id;
  if (c.eos_ids.size() == 1) j["eos_token_id"] = c.eos_ids[0];
  if (c.eos_ids.size() > 1) j["eos_token_id"] = c.eos_ids;
  for (const char* dtype : {"float32", "float16", "bfloat16"})
    if (c.stored_dtype == dtype) j["torch_dtype"] = j["dtype"] = dtype;
  return j;
}

}  // namespace lk
