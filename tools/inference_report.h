// Reports on stderr what inference takes.
#pragma once

#include "run/inference.h"

namespace lk::program {

// Prints rank and memory of each named adapter, and the time to give each of `batch` prompts
// another adapter.
void report_adapters(const InferenceModel& m, std::int64_t batch);
// Prints what weights and adapters hold, and the peaks of the cache and of everything together. A
// cache is as long as the longest request may become.
void report_memory(const Ledger& ledger);

}  // namespace lk::program
