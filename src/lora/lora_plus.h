// LoRA+: B learns faster than A. Source: Hayou, Ghosh & Yu, "LoRA+: Efficient Low Rank Adaptation of
// Large Models", 2024; the groups are those of PEFT's create_loraplus_optimizer.
#pragma once

#include "nn/adamw.h"

namespace lk {

// B and DoRA's magnitude learn at `ratio` times the learning rate. Empty for 0: without LoRA+.
inline AdamW::Rates lora_plus(double ratio) {
  if (ratio == 0) return {};
  return [ratio](const Parameter& p) {
    const bool fast = p.shape().rank() == 1 || p.name().find("lora_B") != std::string::npos;
    return fast ? static_cast<float>(ratio) : 1.0f;
  };
}

}  // namespace lk
