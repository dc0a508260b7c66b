// Kernels beside the clock: cublaslt_timing.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace lk {

// Finite numbers of type t, of either sign, in `bytes` bytes; F32 and BF16 of magnitudes from 1/4 to 1.
void fill_numbers(std::byte* to, std::size_t bytes, DType t, std::uint64_t key,
                  cudaStream_t stream);
// sum += a sum over all bits that knows their places, modulo 2^64.
void add_bits(unsigned long long* sum, const std::byte* of, std::size_t bytes, cudaStream_t stream);

}  // namespace lk
