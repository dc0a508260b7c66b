// The devices of processes that share a run, and the way of gradients between them.
#pragma once

#include <memory>
#include <string>

#include "dist/world.h"
#include "tensor/backend.h"
#include "tensor/log.h"
#include "tensor/transport.h"

namespace lk {

// The device of `device` ("auto", "cuda", ...) that is this process's own: whoever started it shows it
// one GPU, or all. Throws UsageError if there are more processes than GPUs.
std::string own_device(const World& world, const std::string& device);

// NCCL where all processes have it and a GPU each, else through the hosts' memory; null for a World of
// one process. Both must outlive the result. `log` hears of GPUs without NCCL.
std::unique_ptr<Transport> open_transport(World& world, Backend& backend, const LogFunction& log);

}  // namespace lk
