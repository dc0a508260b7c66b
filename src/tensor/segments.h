// Where documents and the keys that they see lie in a batch's single token dimension.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace lk {

// Documents laid end to end: document i holds the tokens [offsets[i], offsets[i+1]).
struct Segments {
  std::vector<std::int32_t> host;  // offsets, n + 1 of them, host[0] = 0
  Tensor offsets;                  // the same offsets on the device, I32 (n + 1)
  std::int64_t count() const { return static_cast<std::int64_t>(host.size()) - 1; }
  std::int64_t total() const { return host.empty() ? 0 : host.back(); }
  std::int64_t longest() const;
};
Segments make_segments(Backend& backend, std::vector<std::int32_t> offsets);

// Where the keys and values of a batch's documents lie: those of document i are rows [begins[i],
// ends[i]). In a cache each sequence has its own rows; without one, the rows are those of the
// documents.
struct KeyRows {
  std::vector<std::int32_t> begins, ends;  // n each
  Tensor device_begins, device_ends;       // the same rows on the device, I32 (n)
  // No document has more keys. It sizes the work of recorded passes, whose rows change later.
  std::int64_t most = 0;
  KeyRows() = default;
  KeyRows(const Segments& documents);
  std::int64_t count() const { return static_cast<std::int64_t>(begins.size()); }
};

}  // namespace lk
