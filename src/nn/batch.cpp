#include "nn/batch.h"

namespace lk {

TokenBatch make_batch(Backend& backend, std::span<const Row* const> rows) {
  check(!rows.empty(), "make_batch: no rows");
  std::vector<std::int32_t> ids, positions, offsets{0}, at, targets;
  for (const Row* row : rows) {
    std::int32_t begin = static_cast<std::int32_t>(ids.size());
    for (std::size_t i = 0; i < row->ids.size(); ++i) {
      ids.push_back(row->ids[i]);
      positions.push_back(static_cast<std::int32_t>(i));
      if (i > 0 && row->supervised[i]) {
        at.push_back(begin + static_cast<std::int32_t>(i) - 1);
        targets.push_back(row->ids[i]);
      }
    }
    offsets.push_back(static_cast<std::int32_t>(ids.size()));
  }
  TokenBatch batch;
  batch.n_tokens = static_cast<std::int64_t>(ids.size());
  batch.n_supervised = static_cast<std::int64_t>(targets.size());
  batch.ids = to_device(backend, Tag::Workspace, ids);
  batch.positions = to_device(backend, Tag::Workspace, positions);
  batch.segments = make_segments(backend, std::move(offsets));
  batch.rows = to_device(backend, Tag::Workspace, at);
  batch.targets = to_device(backend, Tag::Workspace, targets);
  return batch;
}

TokenBatch make_prompt(Backend& backend, std::span<const std::int32_t> ids,
                       std::int64_t first_position) {
  check(!ids.empty(), "make_prompt: no tokens");
  std::vector<std::int32_t> positions(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i)
    positions[i] = static_cast<std::int32_t>(first_position + static_cast<std::int64_t>(i));
  TokenBatch batch;
  batch.n_tokens = static_cast<std::int64_t>(ids.size());
  batch.ids = to_device(backend, Tag::Workspace, ids);
  batch.positions = to_device(backend, Tag::Workspace, positions);
  batch.segments = make_segments(backend, {0, static_cast<std::int32_t>(ids.size())});
  return batch;
}

}  // namespace lk
