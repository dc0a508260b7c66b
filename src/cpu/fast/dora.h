// DoRA's kernels on the CPU: the definitions, in any floating dtype.
#pragma once

#include <memory>

#include "tensor/dora_kernels.h"

namespace lk::cpu {

std::unique_ptr<DoraKernels> make_dora_kernels(std::int64_t& weight_gradients);

}  // namespace lk::cpu
