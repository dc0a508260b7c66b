// What training takes for each parameter of the model, before any activation: where a method's memory
// is to be compared with full fine-tuning's 16 bytes.
#pragma once

#include <cstdint>
#include <string>

#include "lora/proof.h"

namespace lk {

// "full: 16 bytes a parameter in F32 (value 4, gradient 4, optimizer 8)": the ledger's peaks of Params,
// Gradients and Optimizer over all parameters, frozen ones too, and what the frozen weights take.
std::string bytes_per_parameter(const std::string& method, const MemoryReport& memory,
                                std::int64_t frozen, std::int64_t trained);

}  // namespace lk
