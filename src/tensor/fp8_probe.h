// Proves a device's FP8 products before anything relies on them: a scale that is read along the wrong
// side, or a mode that a library's version treats otherwise, gives wrong numbers and no error.
#pragma once

#include <string>

#include "tensor/fp8_kernels.h"

namespace lk {

// Compares small products in every mode that training uses (written, added, onto an addend; of rows
// and of transposed codes) with sums on the host. Returns what is wrong, nothing if all is right.
std::string probe_fp8(Backend& backend, Fp8Kernels& kernels);

}  // namespace lk
