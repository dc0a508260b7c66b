// Opens devices by name: the only way to one. Includes no CUDA header, so callers need none.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "tensor/backend.h"
#include "tensor/transport.h"

namespace lk {

// Opens "cpu", "cuda:N", "cuda": the first GPU, or "auto": that or else the CPU. Throws UsageError
// if this build has no CUDA or the machine has no such GPU.
std::unique_ptr<Backend> open_device(const std::string& name);
// Opens a device of that name that only keeps the books (tensor/plan_backend.h), whether or not the
// machine has it: "cpu", "cuda" or "cuda:N".
std::unique_ptr<Backend> open_plan_device(const std::string& name);
// Number of usable GPUs; 0 in a build without CUDA.
int n_gpus();

// Whether the GPU `backend` can reach those of other processes directly, over NCCL. False for a CPU,
// and where that library is not installed.
bool has_link(const Backend& backend);
// What names a link between processes: one of them makes it and gives it to the others.
std::string make_link_id();
// Waits for all `size` processes to open the link. `backend` must outlive the result. Throws IoError.
std::unique_ptr<Transport> open_link(Backend& backend, const std::string& id, int rank, int size,
                                     std::chrono::seconds timeout);

}  // namespace lk
