#include "lora/proof.h"
#include "io/json.h"

#include <cstdio>

namespace lk {

MemoryReport memory_report(const Backend& backend) {
  MemoryReport report;
  for (int i = 0; i < kTagCount; ++i) {
    const Ledger::Entry& e = backend.ledger()[static_cast<Tag>(i)];
    if (e.total_count == 0) continue;
    report.rows.push_back(
        {tag_name(static_cast<Tag>(i)), e.live_bytes, e.peak_bytes, e.live_count});
  }
  report.live_bytes = backend.ledger().total().live_bytes;
  report.peak_bytes = backend.ledger().total().peak_bytes;
  report.reserved_bytes = backend.cache().peak_reserved_bytes();
  report.driver_allocations = backend.cache().driver_allocations();
  report.offloaded_peak_bytes = backend.offloaded().total().peak_bytes;
  report.offloaded_base_bytes = backend.offloaded()[Tag::Weights].live_bytes;
  return report;
}

Json memory_to_json(const MemoryReport& report) {
  Json tags = Json::object();
  for (const MemoryRow& row : report.rows)
    tags[row.tag] = {{"live_bytes", row.live_bytes}, {"peak_bytes", row.peak_bytes}};
  return {{"tags", tags},
          {"live_bytes", report.live_bytes},
          {"peak_bytes", report.peak_bytes},
          {"reserved_peak_bytes", report.reserved_bytes},
          {"driver_allocations", report.driver_allocations},
          {"offloaded_base_bytes", report.offloaded_base_bytes},
          {"offloaded_peak_bytes", report.offloaded_peak_bytes}};
}

std::string memory_table(const MemoryReport& report) {
  std::string out = "memory by purpose        live MiB    peak MiB\n";
  auto line = [&](const std::string& name, std::int64_t live, std::int64_t peak) {
    char text[96];
    std::snprintf(text, sizeof text, "  %-20s %10.2f  %10.2f\n", name.c_str(),
                  static_cast<double>(live) / (1 << 20), static_cast<double>(peak) / (1 << 20));
    out += text;
  };
  for (const MemoryRow& row : report.rows) line(row.tag, row.live_bytes, row.peak_bytes);
  line("all at one moment", report.live_bytes, report.peak_bytes);
  if (const std::int64_t peak = report.offloaded_peak_bytes; peak > 0)
    line("pinned on the host", report.offloaded_base_bytes, peak);
  return out;
}

void prove_memory(const Backend& backend, const Method& method, std::int64_t weights_bytes,
                  std::int64_t weight_gradient_matmuls, std::int64_t micro_steps,
                  std::int64_t earlier_buffers, std::optional<std::int64_t> updated) {
  const Ledger& ledger = backend.ledger();
  const std::int64_t numel = method.n_parameters();
  const std::int64_t count = std::ssize(method.parameters());
  struct Claim {
    const char* what;
    std::int64_t have, want;
  };
  const Claim claims[] = {
      {"peak bytes of gradients", ledger[Tag::Gradients].peak_bytes, 4 * numel},
      {"number of gradient buffers", ledger[Tag::Gradients].total_count - earlier_buffers, count},
      {"live bytes of the parameters and their copies", ledger[Tag::Params].live_bytes,
       4 * numel + method.copy_bytes()},
      {"peak bytes of optimizer state", ledger[Tag::Optimizer].peak_bytes,
       2 * 4 * updated.value_or(numel)},
      {"live bytes of frozen weights", ledger[Tag::Weights].live_bytes, weights_bytes},
      {"peak bytes of frozen weights", ledger[Tag::Weights].peak_bytes, weights_bytes},
      {"weight-gradient matmuls", weight_gradient_matmuls, micro_steps * method.weight_gradients()},
  };
  for (const Claim& c : claims)
    check(c.have == c.want, "memory proof failed: ", c.what, ": ", c.have, ", expected ", c.want,
          " (only what `method` ", method.name(), " trains may be)\n",
          memory_table(memory_report(backend)));
}

}  // namespace lk
