// What processes that share their work have of their own, and how they get what the others have.
#pragma once

#include <memory>
#include <string>

#include "dist/world.h"
#include "io/json.h"
#include "nn/evaluation.h"
#include "nn/streamed_base.h"
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

// The processes of a World as those that hold a base together. The World must outlive the result.
ShardGroup shard_group(World& world);

// Waits until all processes have done with a base that they hold together: none may free its part of it
// while another reads it.
void leave_base(World& world, Backend& backend);

// How the processes of a World share an evaluation. The World must outlive the result.
EvaluationShare share_of(World& world);

// Throws UsageError naming a process that has another `own` than process 0, and where they differ.
void require_same(World& world, const Json& own);

}  // namespace lk
