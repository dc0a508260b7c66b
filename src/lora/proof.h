// Proves at the end of every run, from the ledger, that only what the method trains holds gradients
// and optimizer state.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/json_fwd.h"
#include "nn/method.h"
#include "tensor/backend.h"

namespace lk {

struct MemoryRow {
  std::string tag;
  std::int64_t live_bytes = 0, peak_bytes = 0, live_count = 0;
};

struct MemoryReport {
  std::vector<MemoryRow> rows;                  // one for each Tag that was used
  std::int64_t live_bytes = 0, peak_bytes = 0;  // over all tags at one moment
  std::int64_t reserved_bytes = 0;              // held from the driver, including cached blocks
  std::int64_t driver_allocations = 0;
  // Pinned host memory, and what the frozen base has of it; not part of the numbers above.
  std::int64_t offloaded_peak_bytes = 0, offloaded_base_bytes = 0;
};

MemoryReport memory_report(const Backend& backend);
Json memory_to_json(const MemoryReport& report);
// The report as text, one line per tag.
std::string memory_table(const MemoryReport& report);

// Checks what must hold at the end of a run that trained `method` with AdamW. With p all of its
// parameters (LoRA's A and B):
//   peak(gradients) = 4 numel(p)            count(gradients) = number of parameters
//   peak(optimizer) = 2 * 4 numel(p)        live(params) = 4 numel(p) + their compute copies
//   live(weights) = peak(weights) = weights_bytes, as loaded
//   weight-gradient matmuls = micro_steps * Method::weight_gradients()
// Throws Error with the table if one of these fails. Of processes that share the optimizer
// (dist/optimizer_slices.h) each has it for the `updated` numbers of p alone.
void prove_memory(const Backend& backend, const Method& method, std::int64_t weights_bytes,
                  std::int64_t weight_gradient_matmuls, std::int64_t micro_steps,
                  std::int64_t earlier_buffers = 0, std::optional<std::int64_t> updated = {});

}  // namespace lk
