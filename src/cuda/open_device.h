// Opens devices by name: the only way to one. Includes no CUDA header, so callers need none.
#pragma once

#include <memory>
#include <string>

#include "tensor/backend.h"

namespace lk {

// Opens "cpu", "cuda:N", "cuda": the first GPU, or "auto": that or else the CPU. Throws UsageError
// if this build has no CUDA or the machine has no such GPU.
std::unique_ptr<Backend> open_device(const std::string& name);
// Opens a device of that name that only keeps the books (tensor/plan_backend.h), whether or not the
// machine has it: "cpu", "cuda" or "cuda:N".
std::unique_ptr<Backend> open_plan_device(const std::string& name);
// Number of usable GPUs; 0 in a build without CUDA.
int n_gpus();

}  // namespace lk
