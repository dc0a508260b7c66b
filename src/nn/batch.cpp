#include "nn/batch.h"

namespace lk {

HostBatch make_host_batch(std::span<const Row* const> rows) {
  check(!rows.empty(), "make_batch: no rows");
  HostBatch batch;
  batch.offsets.push_back(0);
  for (const Row* row : rows) {
    const auto begin = static_cast<std::int32_t>(batch.ids.size());
    for (std::size_t i = 0; i < row->ids.size(); ++i) {
      batch.ids.push_back(row->ids[i]);
      batch.positions.push_back(static_cast<std::int32_t>(i));
      if (i > 0 && row->supervised[i]) {
        batch.rows.push_back(begin + static_cast<std::int32_t>(i) - 1);
        batch.targets.push_back(row->ids[i]);
      }
    }
    batch.offsets.push_back(static_cast<std::int32_t>(batch.ids.size()));
  }
  return batch;
}

TokenBatch upload_batch(Backend& backend, const HostBatch& host) {
  TokenBatch batch;
  batch.n_tokens = host.n_tokens();
  batch.n_supervised = host.n_supervised();
  batch.ids = to_device(backend, Tag::Workspace, host.ids);
  batch.positions = to_device(backend, Tag::Workspace, host.positions);
  batch.segments = make_segments(backend, host.offsets);
  batch.rows = to_device(backend, Tag::Workspace, host.rows);
  batch.targets = to_device(backend, Tag::Workspace, host.targets);
  return batch;
}

TokenBatch make_batch(Backend& backend, std::span<const Row* const> rows) {
  return upload_batch(backend, make_host_batch(rows));
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
