// Families of models: what their names in files are, and what of their maths follows from the
// family alone. Everything else about a model is in its config.
//
// Note [Families are data]: one Block computes all of them. It reads the fields of ModelConfig that
// apply_family() sets, never a family's name; the readers and writers of files look names up here.
#pragma once

#include <span>
#include <string>

#include "nn/config.h"

namespace lk {

// A tensor's or projection's role in the model.
enum class Role : std::uint8_t {
  Embedding,
  Positions,  // learned ones
  AttnNorm,
  Qkv,  // q, k and v in one
  Q,
  K,
  V,
  O,
  QNorm,
  KNorm,
  PostAttnNorm,
  FfnNorm,
  Gate,
  Up,
  Down,
  PostFfnNorm,
  FinalNorm,
  Head,
};

// The projections of a block, in the order in which they run. A model has Qkv or the three of it,
// and no Gate if its MLP is not gated.
enum class Site : std::uint8_t { Qkv, Q, K, V, O, Gate, Up, Down };
inline constexpr int kSiteCount = 8;
constexpr Role role_of(Site site) {
  constexpr Role kRoles[kSiteCount] = {Role::Qkv, Role::Q,    Role::K,  Role::V,
                                       Role::O,   Role::Gate, Role::Up, Role::Down};
  return kRoles[static_cast<std::size_t>(site)];
}

// One role's module in files: Hugging Face's path and GGUF's name, both without ".weight"; inside a
// layer without the layer's prefix.
struct RoleName {
  Role role;
  const char* hf;
  const char* gguf;
};

struct Family {
  const char* model_type;  // in config.json; ModelConfig::architecture
  const char* class_name;
  const char* gguf;          // general.architecture
  const char* layer_prefix;  // Hugging Face: "model.layers."
  std::span<const RoleName> names;

  // Maths: see the fields of the same names in ModelConfig.
  NormKind norm;
  MlpKind mlp;
  bool sandwich_norms, qk_norm, learned_positions, joined_qkv, scaled_embedding;

  // Files.
  bool gain_minus_one;  // Hugging Face stores a norm's gain - 1 (GGUF the gain)
  bool conv1d;          // Hugging Face stores projections as (in, out)
  bool paired_rows;     // GGUF stores the rows of q and k so that a rotary pair is adjacent

  // What an absent key of config.json means.
  std::int64_t default_max_position;
  double default_theta;
  bool tied_by_default;
  bool kv_heads_default_to_heads;
  bool head_dim_required;       // its default is a number, not hidden size / heads
  std::int64_t default_window;  // 0: none
  bool biased_qkv;              // q, k, v always have biases, o never (without a key for it)
  bool has_attention_bias_key;  // attention_bias: biases on q, k, v and o
  bool has_mlp_bias_key;
  bool optional_window;  // sliding_window counts only with use_sliding_window
  bool gemma_keys;       // rope_local_base_freq, query_pre_attn_scalar, sliding_window_pattern
};

// Of a config's architecture. Throws Error for an unknown one.
const Family& family_of(const ModelConfig& config);
// By config.json's model_type or GGUF's general.architecture; null if there is none.
const Family* find_family(const std::string& model_type);
const Family* find_gguf_family(const std::string& architecture);
// "llama, mistral, ..." for messages.
std::string known_families();
std::string known_gguf_families();

// Sets architecture and the fields of the maths that follow from the family.
void apply_family(ModelConfig& config, const Family& family);

// Hugging Face's module path: "model.layers.3.self_attn.q_proj", "lm_head". `layer` counts only for
// roles inside of one. Throws Error for a role that the family does not have.
std::string module_path(const Family& family, Role role, std::int64_t layer = 0);

}  // namespace lk
