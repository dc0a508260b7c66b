// FamilyFiles: how the files of a family of models are written. What its modules are called and how
// it computes is in nn/family.h.
#pragma once

#include <cstdint>
#include <string>

#include "nn/family.h"

namespace lk {

struct FamilyFiles {
  const char* model_type;  // the Family's
  const char* class_name;  // "architectures" of config.json
  const char* gguf;        // general.architecture

  // Layout.
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

const FamilyFiles& files_of(const Family& family);
// The files of a config's family. Throws Error for an unknown architecture.
const FamilyFiles& files_of(const ModelConfig& config);

// The family of GGUF's general.architecture, null if there is none. "llama" is LLaMA, though
// Mistral's files say it too.
const Family* find_gguf_family(const std::string& architecture);
// "llama, qwen2, ..." for messages.
std::string known_gguf_families();

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight". Throws Error for a name that
// the family does not have.
std::string gguf_name(const std::string& hf_name, const Family& family);

}  // namespace lk
