// Families of models: what their modules are called, and what of their maths follows from the
// family alone. modelfile/family_files.h describes their files; everything else about a model is in
// its config.
//
// Note [Families are data]: one Block computes all of them. It reads the fields of ModelConfig that
// apply_family() sets, never a family's name.
#pragma once

#include <span>
#include <string>

#include "nn/config.h"

namespace lk {

// A tensor's or projection's role in the model.
enum class Role : std::uint8_t {
  Embedding,
  Positions,  // learned position embeddings
  AttnNorm,
  Qkv,  // q, k and v in one projection
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

// The projections of a block, in the order in which they run. A model has either Qkv or all of Q, K
// and V, and no Gate if its MLP is not gated.
enum class Site : std::uint8_t { Qkv, Q, K, V, O, Gate, Up, Down };
inline constexpr int kSiteCount = 8;
constexpr Role role_of(Site site) {
  constexpr Role kRoles[kSiteCount] = {Role::Qkv, Role::Q,    Role::K,  Role::V,
                                       Role::O,   Role::Gate, Role::Up, Role::Down};
  return kRoles[static_cast<std::size_t>(site)];
}

// What Hugging Face calls a role's module: a path without ".weight" and, inside a layer, without
// the layer's prefix. Weights, adapters and messages use these names.
struct RoleName {
  Role role;
  const char* path;
};

struct Family {
  const char* model_type;    // Hugging Face's name; ModelConfig::architecture
  const char* layer_prefix;  // "model.layers."
  std::span<const RoleName> names;
  // The maths: see the fields of the same names in ModelConfig.
  NormKind norm;
  MlpKind mlp;
  bool sandwich_norms, qk_norm, learned_positions, joined_qkv, scaled_embedding;
};

// The family of a config's architecture. Throws Error for an unknown one.
const Family& family_of(const ModelConfig& config);
// The family of a Hugging Face model_type; null if there is none.
const Family* find_family(const std::string& model_type);
// The names of all families for messages: "llama, mistral, ...".
std::string known_families();

// Sets config.architecture and the fields of the maths that follow from the family.
void apply_family(ModelConfig& config, const Family& family);

// Hugging Face's module path: "model.layers.3.self_attn.q_proj", "lm_head". `layer` counts only for
// roles inside a layer. Throws Error for a role that the family does not have.
std::string module_path(const Family& family, Role role, std::int64_t layer = 0);

}  // namespace lk
