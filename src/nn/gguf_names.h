// Tensor names: Hugging Face's <-> GGUF's.
#pragma once

#include <string>

namespace lk {

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight". Throws Error for a name that a
// LLaMA-family decoder does not have.
std::string gguf_name(const std::string& hf_name);

}  // namespace lk
