// The one door to the devices. Includes no CUDA header: callers need none.
#pragma once

#include <memory>
#include <string>

#include "tensor/backend.h"

namespace lk {

// "cpu"; "cuda:N" (throws UsageError if this build has no CUDA or the machine no such GPU); "auto":
// the first GPU if there is one, else the CPU.
std::unique_ptr<Backend> open_device(const std::string& name);
// A device of that name that only keeps the books (tensor/plan_backend.h), whether the machine has
// it or not: "cpu", "cuda" or "cuda:N".
std::unique_ptr<Backend> open_plan_device(const std::string& name);
// Number of usable GPUs; 0 in a build without CUDA.
int n_gpus();

}  // namespace lk
