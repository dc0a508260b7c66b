#include "inference_report.h"

#include <cstdio>

#include "program.h"

namespace lk::program {
namespace {

std::string mib(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

void report_adapters(const InferenceModel& m, std::int64_t batch) {
  if (!m.adapters) return;
  for (const AdapterSet::Info& a : m.adapters->adapters())
    message(concat("adapter ", a.name, ": rank ", a.rank, ", ", a.modules, " modules, ",
                   a.bytes >> 10, " KiB"));
  message(concat("another adapter for each of ", batch, " prompts takes ",
                 1e3 * m.adapters->switch_seconds(batch), " ms"));
}

void report_memory(const Ledger& ledger) {
  message(concat("memory: weights ", mib(ledger[Tag::Weights].live_bytes), ", adapters ",
                 mib(ledger[Tag::Params].live_bytes), ", key/value cache ",
                 mib(ledger[Tag::KvCache].peak_bytes), "; all at most ",
                 mib(ledger.total().peak_bytes)));
}

}  // namespace lk::program
