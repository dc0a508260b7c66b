// Packing: rows of unequal length into bins of a fixed number of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lk {

// Groups of row indices, one after another.
struct Bins {
  std::vector<std::int64_t> rows;  // the rows of all bins
  std::vector<std::int64_t> ends;  // bin i is rows [ends[i - 1], ends[i]), from 0 for the first
  std::int64_t count() const { return static_cast<std::int64_t>(ends.size()); }
  std::span<const std::int64_t> operator[](std::int64_t bin) const;
};

// best_fit_decreasing() and next_fit() put every row of `order`, indices into `lengths`, into one
// bin; the lengths of a bin's rows sum to at most `capacity`. Error if a row alone is longer.

// Best fit decreasing: the longest row first, each into the fullest bin that has room for it. Needs
// at most 11/9 of the fewest bins there could be, and one more. Rows of equal length are taken in
// the given order; how full the bins are does not depend on it.
// Source: Johnson, "Near-optimal bin packing algorithms", MIT, 1973.
Bins best_fit_decreasing(std::span<const std::int64_t> lengths, std::span<const std::int64_t> order,
                         std::int64_t capacity);

// Next fit: rows stay in the given order, a new bin begins when the next row does not fit.
Bins next_fit(std::span<const std::int64_t> lengths, std::span<const std::int64_t> order,
              std::int64_t capacity);

// The number of tokens in each bin.
std::vector<std::int64_t> tokens_of(const Bins& bins, std::span<const std::int64_t> lengths);

}  // namespace lk
