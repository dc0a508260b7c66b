// Sums of squares in pieces, and the kernels for slices of what trains.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "tensor/slice_kernels.h"

namespace lk::cpu {

// The sum of x^2 of each piece of kPiece elements (cpu/kernels.h), in order; the pieces of all tensors
// are shared out among the threads, so that many small tensors take no longer than a large one.
std::vector<double> square_sums(std::span<const Tensor> tensors);

std::unique_ptr<SliceKernels> make_slice_kernels();

}  // namespace lk::cpu
