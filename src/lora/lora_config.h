// LoraConfig: where a LoRA adapter is put on a model, and in which shape.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lora/lora_init.h"
#include "lora/lora_linear.h"
#include "nn/config.h"

namespace lk {

struct RankAlpha {
  std::int64_t rank = 0;
  double alpha = 0;
  bool operator==(const RankAlpha&) const = default;
};

struct LoraConfig {
  LoraShape shape = {};
  // Module names ("q_proj"), ends of paths ("self_attn.q_proj", "layers.3.mlp.up_proj"), or the
  // single word "all-linear": every projection of the blocks, as in PEFT (never the head). Empty:
  // the model's default_targets().
  std::vector<std::string> targets = {};
  std::uint64_t seed = 0;
  // Of modules, by path, whose rank or alpha is not that of `shape`.
  std::map<std::string, RankAlpha> exceptions = {};
  // Takes any rank. Without it the most is a matrix's wider side, or its narrower one where A and B are taken
  // out of it. Above the narrower one a rank says no more, but PEFT has it too where one rank is for matrices of
  // many widths; files may have more: what PEFT converts to plain LoRA has twice the rank.
  bool wide_ranks = false;
  // Only modules of these layers, and those that a target names by their whole path. Empty: all.
  std::vector<std::int64_t> layers = {};
  LoraInit init = LoraInit::Kaiming;

  // Whether `target`, one of `targets`, puts the adapter on module `path` of layer `layer`.
  bool selects(const std::string& target, const std::string& path, std::int64_t layer) const;
  LoraShape shape_of(const std::string& path) const;
};

// PEFT's default targets for the family: q_proj and v_proj, or c_attn where q, k and v are one
// projection.
std::vector<std::string> default_targets(const ModelConfig& config);

// Whether `target` names the module at `path`. PEFT's rule: equal, or a suffix after a dot.
bool target_matches(const std::string& path, const std::string& target);

}  // namespace lk
