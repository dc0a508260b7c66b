// The CPU backend: the definition of every op (plain loops, any floating dtype) and a fast path for
// F32 and BF16.
#pragma once

#include <memory>

#include "tensor/backend.h"

namespace lk {

enum class CpuMode {
  Reference,  // plain twins only: the reference for every other implementation
  Fast,       // oneDNN, OpenMP and vectorised kernels for F32 and BF16; twins for F64
};

std::unique_ptr<Backend> make_cpu_backend(CpuMode mode = CpuMode::Fast);
// The CPU as a device that only keeps the books (tensor/plan_backend.h).
std::unique_ptr<Backend> make_cpu_plan();

}  // namespace lk
