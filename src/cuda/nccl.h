// NCCL as a way between the GPUs of several processes. The library is looked for when it is first
// wanted, as libnccl.so.2: neither its header nor the library is needed to build, and without it
// gradients go through host memory.
//
// Only its sends and receives are used, which move bytes as they are. Its sums depend on the number of
// channels, on the message's size and on how the GPUs are connected; ours do not (dist/shared_step.h).
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cuda/cuda_backend.h"
#include "tensor/transport.h"

namespace lk {

bool nccl_is_there();
// What the processes that are to find each other share: made by one of them.
std::string make_nccl_id();
// Waits for all `size` processes, as long as that takes: they have met before, over TCP. After that an
// exchange may take `timeout`. Throws IoError with NCCL's own words.
std::unique_ptr<Transport> make_nccl_transport(CudaBackend& backend, const std::string& id,
                                               int rank, int size, std::chrono::seconds timeout);

}  // namespace lk
