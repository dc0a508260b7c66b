// Tensor names: Hugging Face's <-> GGUF's.
#pragma once

#include <string>

#include "nn/family.h"

namespace lk {

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight". Throws Error for a name that
// the family does not have.
std::string gguf_name(const std::string& hf_name, const Family& family);

}  // namespace lk
