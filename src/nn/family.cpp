#include "nn/family.h"

#include <array>

namespace lk {
namespace {

// ---- names in files ---------------------------------------------------------------------------
constexpr RoleName kLlamaNames[] = {
    {Role::Embedding, "model.embed_tokens", "token_embd"},
    {Role::AttnNorm, "input_layernorm", "attn_norm"},
    {Role::Q, "self_attn.q_proj", "attn_q"},
    {Role::K, "self_attn.k_proj", "attn_k"},
    {Role::V, "self_attn.v_proj", "attn_v"},
    {Role::O, "self_attn.o_proj", "attn_output"},
    {Role::QNorm, "self_attn.q_norm", "attn_q_norm"},
    {Role::KNorm, "self_attn.k_norm", "attn_k_norm"},
    {Role::FfnNorm, "post_attention_layernorm", "ffn_norm"},
    {Role::Gate, "mlp.gate_proj", "ffn_gate"},
    {Role::Up, "mlp.up_proj", "ffn_up"},
    {Role::Down, "mlp.down_proj", "ffn_down"},
    {Role::FinalNorm, "model.norm", "output_norm"},
    {Role::Head, "lm_head", "output"},
};
constexpr RoleName kGemmaNames[] = {
    {Role::Embedding, "model.embed_tokens", "token_embd"},
    {Role::AttnNorm, "input_layernorm", "attn_norm"},
    {Role::Q, "self_attn.q_proj", "attn_q"},
    {Role::K, "self_attn.k_proj", "attn_k"},
    {Role::V, "self_attn.v_proj", "attn_v"},
    {Role::O, "self_attn.o_proj", "attn_output"},
    {Role::QNorm, "self_attn.q_norm", "attn_q_norm"},
    {Role::KNorm, "self_attn.k_norm", "attn_k_norm"},
    {Role::PostAttnNorm, "post_attention_layernorm", "post_attention_norm"},
    {Role::FfnNorm, "pre_feedforward_layernorm", "ffn_norm"},
    {Role::Gate, "mlp.gate_proj", "ffn_gate"},
    {Role::Up, "mlp.up_proj", "ffn_up"},
    {Role::Down, "mlp.down_proj", "ffn_down"},
    {Role::PostFfnNorm, "post_feedforward_layernorm", "post_ffw_norm"},
    {Role::FinalNorm, "model.norm", "output_norm"},
    {Role::Head, "lm_head", "output"},
};
constexpr RoleName kGpt2Names[] = {
    {Role::Embedding, "transformer.wte", "token_embd"},
    {Role::Positions, "transformer.wpe", "position_embd"},
    {Role::AttnNorm, "ln_1", "attn_norm"},
    {Role::Qkv, "attn.c_attn", "attn_qkv"},
    {Role::O, "attn.c_proj", "attn_output"},
    {Role::FfnNorm, "ln_2", "ffn_norm"},
    {Role::Up, "mlp.c_fc", "ffn_up"},
    {Role::Down, "mlp.c_proj", "ffn_down"},
    {Role::FinalNorm, "transformer.ln_f", "output_norm"},
    {Role::Head, "lm_head", "output"},
};

// ---- the families -----------------------------------------------------------------------------
constexpr Family kLlama = {
    .model_type = "llama",
    .class_name = "LlamaForCausalLM",
    .gguf = "llama",
    .layer_prefix = "model.layers.",
    .names = kLlamaNames,
    .norm = NormKind::Rms,
    .mlp = MlpKind::SwiGlu,
    .sandwich_norms = false,
    .qk_norm = false,
    .learned_positions = false,
    .joined_qkv = false,
    .scaled_embedding = false,
    .gain_minus_one = false,
    .conv1d = false,
    .paired_rows = true,
    .default_max_position = 2048,
    .default_theta = 10000,
    .tied_by_default = false,
    .kv_heads_default_to_heads = true,
    .head_dim_required = false,
    .default_window = 0,
    .biased_qkv = false,
    .has_attention_bias_key = true,
    .has_mlp_bias_key = true,
    .optional_window = false,
    .gemma_keys = false,
};

// Each of the others is LLaMA but for what it says.
constexpr Family mistral() {
  Family f = kLlama;
  f.model_type = "mistral";
  f.class_name = "MistralForCausalLM";
  f.default_max_position = 131072;
  f.kv_heads_default_to_heads = false;
  f.default_window = 4096;
  f.has_attention_bias_key = f.has_mlp_bias_key = false;
  return f;
}

constexpr Family qwen2() {
  Family f = kLlama;
  f.model_type = "qwen2";
  f.class_name = "Qwen2ForCausalLM";
  f.gguf = "qwen2";
  f.paired_rows = false;
  f.default_max_position = 32768;
  f.kv_heads_default_to_heads = false;
  f.default_window = 4096;
  f.biased_qkv = true;
  f.has_attention_bias_key = f.has_mlp_bias_key = false;
  f.optional_window = true;
  return f;
}

constexpr Family qwen3() {
  Family f = qwen2();
  f.model_type = "qwen3";
  f.class_name = "Qwen3ForCausalLM";
  f.gguf = "qwen3";
  f.qk_norm = true;
  f.head_dim_required = true;
  f.biased_qkv = false;
  f.has_attention_bias_key = true;
  return f;
}

constexpr Family gemma3_text() {
  Family f = kLlama;
  f.model_type = "gemma3_text";
  f.class_name = "Gemma3ForCausalLM";
  f.gguf = "gemma3";
  f.names = kGemmaNames;
  f.mlp = MlpKind::GeGlu;
  f.sandwich_norms = f.qk_norm = f.scaled_embedding = true;
  f.gain_minus_one = f.gemma_keys = true;
  f.paired_rows = false;
  f.default_max_position = 131072;
  f.default_theta = 1e6;
  f.tied_by_default = true;
  f.kv_heads_default_to_heads = false;
  f.head_dim_required = true;
  f.default_window = 4096;
  f.has_mlp_bias_key = false;
  return f;
}

constexpr Family gpt2() {
  Family f = kLlama;
  f.model_type = "gpt2";
  f.class_name = "GPT2LMHeadModel";
  f.gguf = "gpt2";
  f.layer_prefix = "transformer.h.";
  f.names = kGpt2Names;
  f.norm = NormKind::Layer;
  f.mlp = MlpKind::Gelu;
  f.learned_positions = f.joined_qkv = true;
  f.conv1d = true;
  f.paired_rows = false;
  f.default_max_position = 1024;
  f.tied_by_default = true;
  f.has_attention_bias_key = f.has_mlp_bias_key = false;
  return f;
}

constexpr std::array<Family, 6> kFamilies = {kLlama,  mistral(),     qwen2(),
                                             qwen3(), gemma3_text(), gpt2()};

bool inside_layer(Role role) {
  return role != Role::Embedding && role != Role::Positions && role != Role::FinalNorm &&
         role != Role::Head;
}

}  // namespace

const Family* find_family(const std::string& model_type) {
  for (const Family& f : kFamilies)
    if (model_type == f.model_type) return &f;
  return nullptr;
}

const Family* find_gguf_family(const std::string& architecture) {
  for (const Family& f : kFamilies)  // LLaMA stands before Mistral, which shares its name
    if (architecture == f.gguf) return &f;
  return nullptr;
}

const Family& family_of(const ModelConfig& config) {
  const Family* f = find_family(config.architecture);
  check(f != nullptr, "no family is called '", config.architecture, "'");
  return *f;
}

std::string known_families() {
  std::string names;
  for (const Family& f : kFamilies) names += concat(names.empty() ? "" : ", ", f.model_type);
  return names;
}

std::string known_gguf_families() {
  std::string names;
  for (const Family& f : kFamilies)
    if (find_gguf_family(f.gguf) == &f) names += concat(names.empty() ? "" : ", ", f.gguf);
  return names;
}

void apply_family(ModelConfig& c, const Family& f) {
  c.architecture = f.model_type;
  c.norm = f.norm;
  c.mlp = f.mlp;
  c.sandwich_norms = f.sandwich_norms;
  c.qk_norm = f.qk_norm;
  c.learned_positions = f.learned_positions;
  c.joined_qkv = f.joined_qkv;
  c.scaled_embedding = f.scaled_embedding;
}

std::string module_path(const Family& family, Role role, std::int64_t layer) {
  for (const RoleName& n : family.names)
    if (n.role == role)
      return inside_layer(role) ? concat(family.layer_prefix, layer, ".", n.hf) : n.hf;
  throw Error(concat(family.model_type, " has no module of role ", static_cast<int>(role)));
}

}  // namespace lk
