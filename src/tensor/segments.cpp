#include "tensor/segments.h"

#include <algorithm>

#include "tensor/backend.h"

namespace lk {

std::int64_t Segments::longest() const {
  std::int64_t longest = 0;
  for (std::size_t i = 1; i < host.size(); ++i)
    longest = std::max<std::int64_t>(longest, host[i] - host[i - 1]);
  return longest;
}

Segments make_segments(Backend& backend, std::vector<std::int32_t> offsets) {
  check(!offsets.empty() && offsets[0] == 0, "segments: offsets must start at 0");
  check(std::is_sorted(offsets.begin(), offsets.end()), "segments: offsets must not decrease");
  Segments s;
  s.host = std::move(offsets);
  s.offsets = to_device(backend, Tag::Workspace, s.host);
  return s;
}

KeyRows::KeyRows(const Segments& documents) : most(documents.longest()) {
  if (documents.count() <= 0) return;
  begins.assign(documents.host.begin(), documents.host.end() - 1);
  ends.assign(documents.host.begin() + 1, documents.host.end());
  device_begins = documents.offsets.slice_rows(0, documents.count());
  device_ends = documents.offsets.slice_rows(1, documents.count() + 1);
}

}  // namespace lk
