#include "text/packing.h"

#include <algorithm>
#include <map>

#include "tensor/error.h"

namespace lk {

namespace {

std::int64_t length_of(std::span<const std::int64_t> lengths, std::int64_t row,
                       std::int64_t capacity) {
  const std::int64_t length = lengths[static_cast<std::size_t>(row)];
  check(length <= capacity, "packing: row ", row, " has ", length, " tokens, a bin ", capacity);
  return length;
}

}  // namespace

std::span<const std::int64_t> Bins::operator[](std::int64_t bin) const {
  const auto i = static_cast<std::size_t>(bin);
  const auto begin = static_cast<std::size_t>(i == 0 ? 0 : ends[i - 1]);
  return std::span(rows).subspan(begin, static_cast<std::size_t>(ends[i]) - begin);
}

Bins best_fit_decreasing(std::span<const std::int64_t> lengths, std::span<const std::int64_t> order,
                         std::int64_t capacity) {
  std::vector<std::int64_t> sorted(order.begin(), order.end());
  std::stable_sort(sorted.begin(), sorted.end(), [&](std::int64_t a, std::int64_t b) {
    return lengths[static_cast<std::size_t>(a)] > lengths[static_cast<std::size_t>(b)];
  });
  std::vector<std::vector<std::int64_t>> filled;
  // Bins by the room they have left. Of equal ones the last is taken: which one changes no sum.
  std::map<std::int64_t, std::vector<std::size_t>> by_room;
  for (std::int64_t row : sorted) {
    const std::int64_t length = length_of(lengths, row, capacity);
    std::int64_t room = capacity;
    std::size_t bin = filled.size();
    if (auto fullest = by_room.lower_bound(length); fullest != by_room.end()) {
      room = fullest->first;
      bin = fullest->second.back();
      fullest->second.pop_back();
      if (fullest->second.empty()) by_room.erase(fullest);
    } else {
      filled.emplace_back();
    }
    filled[bin].push_back(row);
    by_room[room - length].push_back(bin);
  }
  Bins bins;
  for (const auto& rows : filled) {
    bins.rows.insert(bins.rows.end(), rows.begin(), rows.end());
    bins.ends.push_back(std::ssize(bins.rows));
  }
  return bins;
}

Bins next_fit(std::span<const std::int64_t> lengths, std::span<const std::int64_t> order,
              std::int64_t capacity) {
  Bins bins;
  std::int64_t room = capacity;
  for (std::int64_t row : order) {
    const std::int64_t length = length_of(lengths, row, capacity);
    if (length > room) {
      bins.ends.push_back(std::ssize(bins.rows));
      room = capacity;
    }
    bins.rows.push_back(row);
    room -= length;
  }
  if (!bins.rows.empty()) bins.ends.push_back(std::ssize(bins.rows));
  return bins;
}

std::vector<std::int64_t> tokens_of(const Bins& bins, std::span<const std::int64_t> lengths) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < bins.count(); ++i) {
    tokens.push_back(0);
    for (std::int64_t row : bins[i]) tokens.back() += lengths[static_cast<std::size_t>(row)];
  }
  return tokens;
}

}  // namespace lk
