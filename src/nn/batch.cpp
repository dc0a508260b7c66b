#include "nn/batch.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace lk {
namespace {

constexpr std::size_t kMostTokens = std::numeric_limits<std::int32_t>::max();

// n rounded up to a multiple of 1/parts of the largest power of two not above it, or of `least`.
std::int64_t rounded_up(std::int64_t n, std::int64_t parts, std::int64_t least) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(n)));
  const std::int64_t unit = std::max(least, power / parts);
  return (n + unit - 1) / unit * unit;
}

// Added tokens form documents of the mean length, so none is too long for the model.
std::int64_t mean_length(const BatchSize& size) {
  return std::max<std::int64_t>(1, size.tokens / size.documents);
}
std::int64_t added_documents(const BatchSize& size, std::int64_t tokens) {
  const std::int64_t length = mean_length(size);
  return (tokens - size.tokens + length - 1) / length;
}

}  // namespace

BatchSize size_of(const HostBatch& batch) {
  return {batch.n_tokens(), std::ssize(batch.offsets) - 1, batch.n_supervised(),
          std::ssize(batch.virtual_rows)};
}

BatchSize padded_size(std::span<const BatchSize> sizes) {
  BatchSize largest;
  for (const BatchSize& size : sizes) {
    largest.tokens = std::max(largest.tokens, size.tokens);
    largest.supervised = std::max(largest.supervised, size.supervised);
  }
  const std::int64_t tokens = rounded_up(largest.tokens, 16, 64);
  for (const BatchSize& size : sizes)
    largest.documents = std::max(largest.documents, size.documents + added_documents(size, tokens));
  return {tokens, std::max<std::int64_t>(8, rounded_up(largest.documents, 4, 1)),
          std::min(rounded_up(largest.supervised, 4, 64), tokens)};
}

void pad_offsets(std::vector<std::int32_t>& offsets, const BatchSize& from, const BatchSize& to) {
  while (std::ssize(offsets) <= to.documents)
    offsets.push_back(
        static_cast<std::int32_t>(std::min(offsets.back() + mean_length(from), to.tokens)));
}

void pad_batch(HostBatch& batch, const BatchSize& to) {
  const BatchSize from = size_of(batch);
  const std::int64_t more_tokens = to.tokens - from.tokens;
  check(more_tokens >= 0 && to.documents >= from.documents + added_documents(from, to.tokens) &&
            to.supervised >= from.supervised && to.supervised <= to.tokens,
        "pad_batch: a batch of ", from.tokens, " tokens, ", from.documents, " documents and ",
        from.supervised, " supervised rows can't become one of ", to.tokens, ", ", to.documents,
        " and ", to.supervised);
  batch.ids.resize(static_cast<std::size_t>(to.tokens), 0);
  batch.positions.resize(static_cast<std::size_t>(to.tokens), 0);
  pad_offsets(batch.offsets, from, to);
  // Rows must be distinct: take the last tokens that are not supervised.
  std::vector<bool> taken(batch.ids.size());
  for (std::int32_t row : batch.rows) taken[static_cast<std::size_t>(row)] = true;
  for (std::int64_t row = to.tokens - 1; batch.n_supervised() < to.supervised; --row) {
    if (taken[static_cast<std::size_t>(row)]) continue;
    batch.rows.push_back(static_cast<std::int32_t>(row));
    batch.targets.push_back(kNoTarget);
  }
}

HostBatch make_host_batch(std::span<const Row* const> rows, std::int64_t virtual_tokens) {
  require(!rows.empty(), "a batch needs at least one row");
  HostBatch batch;
  batch.offsets.push_back(0);
  for (const Row* row : rows) {
    const std::ptrdiff_t number = std::ssize(batch.offsets) - 1;
    require(row != nullptr, "rows[", number, "]: null");
    require(!row->ids.empty(), "rows[", number, "].ids: no tokens");
    require(row->ids.size() == row->supervised.size(), "rows[", number, "]: ", row->ids.size(),
            " ids but ", row->supervised.size(), " values of `supervised`");
    require(batch.ids.size() + row->ids.size() + static_cast<std::size_t>(virtual_tokens) <=
                kMostTokens,
            "a batch of more than ", kMostTokens, " tokens");
    for (std::int64_t i = 0; i < virtual_tokens; ++i) {
      batch.virtual_rows.push_back(static_cast<std::int32_t>(batch.ids.size()));
      batch.ids.push_back(0);
      batch.positions.push_back(static_cast<std::int32_t>(i));
    }
    const auto begin = static_cast<std::int32_t>(batch.ids.size());
    for (std::size_t i = 0; i < row->ids.size(); ++i) {
      batch.ids.push_back(row->ids[i]);
      batch.positions.push_back(
          static_cast<std::int32_t>(virtual_tokens + static_cast<std::int64_t>(i)));
      if ((i > 0 || virtual_tokens > 0) && row->supervised[i]) {
        batch.rows.push_back(begin + static_cast<std::int32_t>(i) - 1);
        batch.targets.push_back(row->ids[i]);
      }
    }
    batch.offsets.push_back(static_cast<std::int32_t>(batch.ids.size()));
  }
  return batch;
}

void check_batch(const HostBatch& batch, const BatchLimits& limits) {
  const std::int64_t tokens = batch.n_tokens();
  require(tokens > 0, "HostBatch: no tokens");
  require(std::ssize(batch.positions) == tokens, "HostBatch: ", tokens, " ids but ",
          batch.positions.size(), " positions");
  require(batch.rows.size() == batch.targets.size(), "HostBatch: ", batch.rows.size(), " rows but ",
          batch.targets.size(), " targets");
  const auto& offsets = batch.offsets;
  require(offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == tokens &&
              std::is_sorted(offsets.begin(), offsets.end()),
          "HostBatch: offsets must rise from 0 to the number of tokens, ", tokens);
  auto within = [](const std::vector<std::int32_t>& values, std::int64_t least, std::int64_t end,
                   const char* name) {
    for (std::size_t i = 0; i < values.size(); ++i)
      require(values[i] >= least && values[i] < end, name, "[", i, "]: ", values[i], " is not in ",
              least, " .. ", end - 1);
  };
  within(batch.ids, 0, limits.vocab_size, "HostBatch.ids");
  within(batch.positions, 0, limits.max_positions, "HostBatch.positions");
  within(batch.rows, 0, tokens, "HostBatch.rows");
  within(batch.targets, kNoTarget, limits.vocab_size, "HostBatch.targets");
  within(batch.virtual_rows, 0, tokens, "HostBatch.virtual_rows");
  require(limits.virtual_tokens == 0
              ? batch.virtual_rows.empty()
              : std::ssize(batch.virtual_rows) % limits.virtual_tokens == 0 &&
                    !batch.virtual_rows.empty(),
          "HostBatch.virtual_rows: ", batch.virtual_rows.size(), ", but the model has ",
          limits.virtual_tokens, " virtual tokens before each document");
}

BatchSize size_of(std::span<const std::int32_t> offsets, std::int64_t virtual_tokens) {
  const std::int64_t count = std::ssize(offsets) - 1, virtual_rows = count * virtual_tokens;
  const std::int64_t first_tokens = virtual_rows > 0 ? 0 : count;  // without a token before them
  return {offsets.back(), count, offsets.back() - virtual_rows - first_tokens, virtual_rows};
}

std::vector<std::int32_t> document_offsets(std::span<const std::int64_t> lengths) {
  std::vector<std::int32_t> offsets{0};
  for (std::int64_t length : lengths) {
    if (length > INT32_MAX - offsets.back())
      throw UsageError(concat("a micro-batch of more than ", INT32_MAX,
                              " tokens: take fewer rows (`batch`) or shorter ones (`seq_len`)"));
    offsets.push_back(static_cast<std::int32_t>(offsets.back() + length));
  }
  return offsets;
}

TokenBatch empty_batch(Backend& backend, const BatchSize& size) {
  auto ints = [&](std::int64_t n) { return backend.empty(Tag::Workspace, DType::I32, {n}); };
  TokenBatch batch;
  batch.n_tokens = size.tokens;
  batch.n_supervised = size.supervised;
  batch.ids = ints(size.tokens);
  batch.positions = ints(size.tokens);
  batch.segments.offsets = ints(size.documents + 1);
  batch.rows = ints(size.supervised);
  batch.targets = ints(size.supervised);
  if (size.virtual_rows > 0) batch.virtual_rows = ints(size.virtual_rows);
  return batch;
}

void upload_batch(TokenBatch& to, const HostBatch& from) {
  check(from.offsets.front() == 0 && std::is_sorted(from.offsets.begin(), from.offsets.end()),
        "upload_batch: offsets must start at 0 and not decrease");
  auto upload = [](const Tensor& x, const std::vector<std::int32_t>& values) {
    x.backend().upload(x, values.data(), values.size() * sizeof(std::int32_t));
  };
  upload(to.ids, from.ids);
  upload(to.positions, from.positions);
  upload(to.segments.offsets, from.offsets);
  upload(to.rows, from.rows);
  upload(to.targets, from.targets);
  if (!from.virtual_rows.empty()) upload(to.virtual_rows, from.virtual_rows);
  to.segments.host = from.offsets;
}

TokenBatch make_batch(Backend& backend, std::span<const Row* const> rows,
                      std::int64_t virtual_tokens) {
  const HostBatch host = make_host_batch(rows, virtual_tokens);
  TokenBatch batch = empty_batch(backend, size_of(host));
  upload_batch(batch, host);
  return batch;
}

TokenBatch make_prompt(Backend& backend, std::span<const std::int32_t> ids,
                       std::int64_t first_position) {
  require(!ids.empty() && first_position >= 0, "a prompt needs a token, and positions from 0 on");
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
