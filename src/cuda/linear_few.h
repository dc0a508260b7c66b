// Products of a few rows with a frozen matrix: see linear_few.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "tensor/backend.h"

namespace lk {

// The parts (Backend::linear_forward_parts) in one launch, if they are some for these kernels: at
// most 3, M <= 8, 16-byte aligned rows; else false, with nothing done.
bool linear_few_rows(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream);

}  // namespace lk
