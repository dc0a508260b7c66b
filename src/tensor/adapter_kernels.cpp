#include "tensor/adapter_kernels.h"

#include <algorithm>

namespace lk {

LoraTable make_lora_table(Backend& backend, std::vector<LoraFactors> variants) {
  LoraTable table;
  std::vector<LoraEntry> entries;
  for (const LoraFactors& f : variants) {
    if (!f.a.defined()) {
      entries.push_back({nullptr, nullptr, 0, 0.0f});
      continue;
    }
    const std::int64_t R = f.a.rows();
    check(f.b_t.rows() == R && f.a.contiguous() && f.b_t.contiguous(), "lora table: a ",
          f.a.shape().str(), " b_t ", f.b_t.shape().str());
    entries.push_back({f.a.raw(), f.b_t.raw(), static_cast<std::int32_t>(R), f.scale});
    table.max_rank = std::max(table.max_rank, R);
  }
  table.host = std::move(variants);
  if (entries.empty()) return table;
  const std::size_t bytes = entries.size() * sizeof(LoraEntry);
  table.device = backend.empty(Tag::Params, DType::U8, {static_cast<std::int64_t>(bytes)});
  backend.upload(table.device, entries.data(), bytes);
  return table;
}

}  // namespace lk
