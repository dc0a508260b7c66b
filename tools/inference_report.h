// What inference takes, as lines on stderr.
#pragma once

#include "run/inference.h"

namespace lk::program {

// Rank and memory of each named adapter, and the time to give every one of `batch` prompts another.
void report_adapters(const InferenceModel& m, std::int64_t batch);
// What weights and adapters hold; what the cache, and all together, held at most. A cache is as
// long as the longest request may become.
void report_memory(const Ledger& ledger);

}  // namespace lk::program
