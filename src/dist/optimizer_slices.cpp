#include "dist/optimizer_slices.h"

#include <algorithm>

namespace lk {

OptimizerSlices::OptimizerSlices(std::span<Parameter* const> parameters, std::int64_t piece,
                                 int size)
    : piece_(piece), numel_{1} {
  check(piece > 0 && piece % kAlignment == 0 && size > 0, "OptimizerSlices: pieces of ", piece,
        " for ", size, " processes");
  for (const Parameter* p : parameters) numel_.push_back(p->numel());
  std::int64_t total = 0;
  for (const std::int64_t n : numel_) {
    begin_.push_back(total);
    total += aligned(n);
  }
  begin_.push_back(total);

  Range range;
  for (int i = 1; i <= size; ++i) {
    // Of total * i / size: the product may be too large.
    const std::int64_t target = total / size * i + total % size * i / size;
    range = {range.end, i == size ? total : border_near(target)};
    ranges_.push_back(range);
    Range sums{n_sums_, n_sums_};
    for_each_part(range, [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t) {
      if (t > 0) sums.end += (to - from + piece_ - 1) / piece_;
    });
    n_sums_ = sums.end;
    sums_.push_back(sums);
  }
  const auto most =
      std::max_element(ranges_.begin(), ranges_.end(),
                       [&](const Range& a, const Range& b) { return numel_in(a) < numel_in(b); });
  first_ = static_cast<std::size_t>(most - ranges_.begin());
}

std::int64_t OptimizerSlices::border_near(std::int64_t target) const {
  const auto after = std::upper_bound(begin_.begin(), begin_.end(), target);
  const std::int64_t begin = *std::prev(after);
  const std::int64_t low = begin + (target - begin) / piece_ * piece_,
                     high = after == begin_.end() ? low : std::min(low + piece_, *after);
  return target - low <= high - target ? low : high;
}

std::int64_t OptimizerSlices::longest() const {
  std::int64_t most = 0;
  for (const Range& r : ranges_) most = std::max(most, r.size());
  return most;
}

std::vector<AdamW::Slice> OptimizerSlices::of(int rank) const {
  std::vector<AdamW::Slice> all(numel_.size() - 1);
  for_each_part(range(rank), [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t) {
    if (t > 0) all[t - 1] = {from, to};
  });
  return all;
}

std::int64_t OptimizerSlices::numel(int rank) const { return numel_in(range(rank)); }

int OptimizerSlices::with_loss() const {
  int rank = 0;
  while (range(rank).begin > 0 || range(rank).size() == 0) ++rank;
  return rank;
}

OptimizerSlices::Range OptimizerSlices::part_of(std::size_t tensor, Range range) const {
  const auto inside = [&](std::int64_t at) {
    return std::clamp(at - begin_[tensor], std::int64_t{0}, numel_[tensor]);
  };
  return {inside(range.begin), inside(range.end)};
}

std::size_t OptimizerSlices::first_in(Range range) const {
  const auto after = std::upper_bound(begin_.begin(), begin_.end(), range.begin);
  return static_cast<std::size_t>(std::prev(after) - begin_.begin());
}

std::int64_t OptimizerSlices::numel_in(Range range) const {
  std::int64_t n = 0;
  for_each_part(range, [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t) {
    if (t > 0) n += to - from;
  });
  return n;
}

}  // namespace lk
