#include "nn/family.h"

#include <array>

namespace lk {
namespace {

// ---- names ------------------------------------------------------------------------------------

constexpr RoleName kLlamaNames[] = {
    {Role::Embedding, "model.embed_tokens"},
    {Role::AttnNorm, "input_layernorm"},
    {Role::Q, "self_attn.q_proj"},
    {Role::K, "self_attn.k_proj"},
    {Role::V, "self_attn.v_proj"},
    {Role::O, "self_attn.o_proj"},
    {Role::QNorm, "self_attn.q_norm"},
    {Role::KNorm, "self_attn.k_norm"},
    {Role::FfnNorm, "post_attention_layernorm"},
    {Role::Gate, "mlp.gate_proj"},
    {Role::Up, "mlp.up_proj"},
    {Role::Down, "mlp.down_proj"},
    {Role::FinalNorm, "model.norm"},
    {Role::Head, "lm_head"},
};
constexpr RoleName kGemmaNames[] = {
    {Role::Embedding, "model.embed_tokens"},
    {Role::AttnNorm, "input_layernorm"},
    {Role::Q, "self_attn.q_proj"},
    {Role::K, "self_attn.k_proj"},
    {Role::V, "self_attn.v_proj"},
    {Role::O, "self_attn.o_proj"},
    {Role::QNorm, "self_attn.q_norm"},
    {Role::KNorm, "self_attn.k_norm"},
    {Role::PostAttnNorm, "post_attention_layernorm"},
    {Role::FfnNorm, "pre_feedforward_layernorm"},
    {Role::Gate, "mlp.gate_proj"},
    {Role::Up, "mlp.up_proj"},
    {Role::Down, "mlp.down_proj"},
    {Role::PostFfnNorm, "post_feedforward_layernorm"},
    {Role::FinalNorm, "model.norm"},
    {Role::Head, "lm_head"},
};
constexpr RoleName kGpt2Names[] = {
    {Role::Embedding, "transformer.wte"},
    {Role::Positions, "transformer.wpe"},
    {Role::AttnNorm, "ln_1"},
    {Role::Qkv, "attn.c_attn"},
    {Role::O, "attn.c_proj"},
    {Role::FfnNorm, "ln_2"},
    {Role::Up, "mlp.c_fc"},
    {Role::Down, "mlp.c_proj"},
    {Role::FinalNorm, "transformer.ln_f"},
    {Role::Head, "lm_head"},
};

// ---- the families -----------------------------------------------------------------------------

constexpr Family kLlama = {
    .model_type = "llama",
    .layer_prefix = "model.layers.",
    .names = kLlamaNames,
    .norm = NormKind::Rms,
    .mlp = MlpKind::SwiGlu,
    .sandwich_norms = false,
    .qk_norm = false,
    .learned_positions = false,
    .joined_qkv = false,
    .scaled_embedding = false,
};

// Each of the other families starts as LLaMA and states what differs.

constexpr Family mistral() {
  Family f = kLlama;
  f.model_type = "mistral";
  return f;
}

constexpr Family qwen2() {
  Family f = kLlama;
  f.model_type = "qwen2";
  return f;
}

constexpr Family qwen3() {
  Family f = kLlama;
  f.model_type = "qwen3";
  f.qk_norm = true;
  return f;
}

constexpr Family gemma3_text() {
  Family f = kLlama;
  f.model_type = "gemma3_text";
  f.names = kGemmaNames;
  f.mlp = MlpKind::GeGlu;
  f.sandwich_norms = f.qk_norm = f.scaled_embedding = true;
  return f;
}

constexpr Family gpt2() {
  Family f = kLlama;
  f.model_type = "gpt2";
  f.layer_prefix = "transformer.h.";
  f.names = kGpt2Names;
  f.norm = NormKind::Layer;
  f.mlp = MlpKind::Gelu;
  f.learned_positions = f.joined_qkv = true;
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
      return inside_layer(role) ? concat(family.layer_prefix, layer, ".", n.path) : n.path;
  throw Error(concat(family.model_type, " has no module of role ", static_cast<int>(role)));
}

}  // namespace lk
