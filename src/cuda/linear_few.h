// Frozen projections of a few rows: the products of a step of generation.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "tensor/cache_kernels.h"

namespace lk {

// Computes the parts (CacheKernels::linear_parts) in one launch or two, if they suit these kernels:
// at most 3, rows 16-byte aligned, M <= 32 in BF16, M <= 8 and no input to make in F32. Otherwise
// returns false, with nothing done.
bool linear_few_rows(const Tensor& x, const MadeInput* input, std::span<const LinearPart> parts,
                     cudaStream_t stream);

// The same for quantised weights, whose codes are read where they lie; x in BF16, M <= 32.
bool linear_few_quantised(const Tensor& x, const MadeInput* input,
                          std::span<const LinearPart> parts, cudaStream_t stream);

}  // namespace lk
