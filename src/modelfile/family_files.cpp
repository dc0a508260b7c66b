#include "modelfile/family_files.h"

#include <array>
#include <string_view>
#include <utility>

namespace lk {
namespace {

constexpr FamilyFiles kLlama = {
    .model_type = "llama",
    .class_name = "LlamaForCausalLM",
    .gguf = "llama",
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

// The files of each other family are LLaMA's but for what it says.

constexpr FamilyFiles mistral() {
  FamilyFiles f = kLlama;
  f.model_type = "mistral";
  f.class_name = "MistralForCausalLM";
  f.default_max_position = 131072;
  f.kv_heads_default_to_heads = false;
  f.default_window = 4096;
  f.has_attention_bias_key = f.has_mlp_bias_key = false;
  return f;
}

constexpr FamilyFiles qwen2() {
  FamilyFiles f = kLlama;
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

constexpr FamilyFiles qwen3() {
  FamilyFiles f = qwen2();
  f.model_type = "qwen3";
  f.class_name = "Qwen3ForCausalLM";
  f.gguf = "qwen3";
  f.head_dim_required = true;
  f.biased_qkv = false;
  f.has_attention_bias_key = true;
  return f;
}

constexpr FamilyFiles gemma3_text() {
  FamilyFiles f = kLlama;
  f.model_type = "gemma3_text";
  f.class_name = "Gemma3ForCausalLM";
  f.gguf = "gemma3";
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

constexpr FamilyFiles gpt2() {
  FamilyFiles f = kLlama;
  f.model_type = "gpt2";
  f.class_name = "GPT2LMHeadModel";
  f.gguf = "gpt2";
  f.conv1d = true;
  f.paired_rows = false;
  f.default_max_position = 1024;
  f.tied_by_default = true;
  f.has_attention_bias_key = f.has_mlp_bias_key = false;
  return f;
}

constexpr std::array<FamilyFiles, 6> kFamilies = {kLlama,  mistral(),     qwen2(),
                                                  qwen3(), gemma3_text(), gpt2()};

// GGUF calls a role's module the same in all families.
constexpr std::pair<Role, const char*> kGgufModules[] = {
    {Role::Embedding, "token_embd"},
    {Role::Positions, "position_embd"},
    {Role::AttnNorm, "attn_norm"},
    {Role::Qkv, "attn_qkv"},
    {Role::Q, "attn_q"},
    {Role::K, "attn_k"},
    {Role::V, "attn_v"},
    {Role::O, "attn_output"},
    {Role::QNorm, "attn_q_norm"},
    {Role::KNorm, "attn_k_norm"},
    {Role::PostAttnNorm, "post_attention_norm"},
    {Role::FfnNorm, "ffn_norm"},
    {Role::Gate, "ffn_gate"},
    {Role::Up, "ffn_up"},
    {Role::Down, "ffn_down"},
    {Role::PostFfnNorm, "post_ffw_norm"},
    {Role::FinalNorm, "output_norm"},
    {Role::Head, "output"},
};

const char* gguf_module(Role role) {
  for (const auto& [known, name] : kGgufModules)
    if (known == role) return name;
  throw Error(concat("GGUF has no name for role ", static_cast<int>(role)));
}

}  // namespace

const FamilyFiles& files_of(const Family& family) {
  for (const FamilyFiles& f : kFamilies)
    if (std::string_view(f.model_type) == family.model_type) return f;
  throw Error(concat("no files of the family '", family.model_type, "' are known"));
}

const FamilyFiles& files_of(const ModelConfig& config) { return files_of(family_of(config)); }

const Family* find_gguf_family(const std::string& architecture) {
  for (const FamilyFiles& f : kFamilies)  // LLaMA stands before Mistral, which shares its name
    if (architecture == f.gguf) return find_family(f.model_type);
  return nullptr;
}

std::string known_gguf_families() {
  std::string names;
  for (const FamilyFiles& f : kFamilies)
    if (find_gguf_family(f.gguf) == find_family(f.model_type))
      names += concat(names.empty() ? "" : ", ", f.gguf);
  return names;
}

std::string gguf_name(const std::string& hf_name, const Family& family) {
  const std::string_view prefix = family.layer_prefix;
  const std::size_t last = hf_name.rfind('.');  // begins ".weight" or ".bias"
  if (last != std::string::npos) {
    std::string module = hf_name.substr(0, last), layer;
    const std::size_t dot = hf_name.find('.', prefix.size());  // ends the layer's number
    if (hf_name.starts_with(prefix) && dot < last) {
      module = hf_name.substr(dot + 1, last - dot - 1);
      layer = concat("blk.", hf_name.substr(prefix.size(), dot - prefix.size()), ".");
    }
    for (const RoleName& n : family.names)
      if (module == n.path) return concat(layer, gguf_module(n.role), hf_name.substr(last));
  }
  throw Error(concat("no GGUF name for '", hf_name, "'"));
}

}  // namespace lk
