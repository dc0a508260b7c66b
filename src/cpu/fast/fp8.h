// FP8 products on the CPU: the definition that GPUs are compared with, and for runs that are to have
// a GPU's numbers. They are slower than dense scratch.
#pragma once

#include <memory>

#include "tensor/fp8_kernels.h"

namespace lk::cpu {

// `backend` must outlive them. A rehearsal takes the memory and computes nothing.
std::unique_ptr<Fp8Kernels> make_fp8_kernels(Backend& backend, bool rehearsal = false);

}  // namespace lk::cpu
