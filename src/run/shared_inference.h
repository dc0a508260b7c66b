// Inference that several processes share, each with the whole model (docs/several-gpus.md).
//
// Note [Groups of prompts]. Which prompts are in a batch may decide the last bits of a product (Note
// [Batch independence] in nn/generate.h), so prompts are shared out in groups that know nothing of
// processes: as many of nearly equal size, in order, as batches of at most max_batch sequences need.
// Group g is continued by process g mod W, as one call of Generator::run(), in rounds of W groups. A
// place in a batch that becomes free is not filled again: one process alone, which fills it, is faster
// where lengths differ much.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "dist/world.h"
#include "io/json.h"
#include "nn/generate.h"

namespace lk {

// The number of groups in which generate_shared() continues `prompts` prompts.
std::int64_t generation_groups(std::int64_t prompts, std::int64_t beams, std::int64_t max_batch);

// Generator::run() by all processes of `world`, of which each returns the results of all. `on_done`
// (may be empty) hears of them in the order of the requests, in every process. Any number of processes
// returns the same tokens and texts. Throws as Generator::run() and World::exchange() do.
std::vector<Generation> generate_shared(
    World& world, Generator& generator, std::span<const GenerationRequest> requests,
    const std::function<void(std::size_t, const Generation&)>& on_done = {});

// Throws UsageError if a process was given other `settings` than process 0, or computes another loss
// of a few tokens: it has other weights, another precision or a processor of another kind. Adapters
// that prompts choose by name have no part in that loss.
void require_same_inference(World& world, Transformer& model, const Json& settings);

}  // namespace lk
