#include "text/sampler.h"

#include <numeric>

#include "tensor/error.h"
#include "tensor/philox.h"

namespace lk {

namespace {

// These bits keep the sampler's random numbers apart from those of dropout masks, whose second
// counter stays below 2^63.
constexpr std::uint64_t kRowStream = std::uint64_t{1} << 63;
constexpr std::uint64_t kBinStream = kRowStream | std::uint64_t{1} << 62;

// Draws a uniform whole number in [0, bound) from 64 bits; draws above the last multiple of bound
// are repeated.
std::uint64_t uniform_below(std::uint64_t bound, std::uint64_t seed, std::uint64_t element,
                            std::uint64_t stream) {
  const std::uint64_t limit = ~std::uint64_t{0} - (~std::uint64_t{0} % bound + 1) % bound;
  for (std::uint64_t attempt = 0;; ++attempt) {
    const Philox4 bits = philox(seed, element | attempt << 48, stream);
    for (int half = 0; half < 2; ++half) {
      const std::uint64_t draw =
          static_cast<std::uint64_t>(bits.v[2 * half]) << 32 | bits.v[2 * half + 1];
      if (draw <= limit) return draw % bound;
    }
  }
}

// The numbers 0 .. n - 1, shuffled (Fisher-Yates).
std::vector<std::int64_t> permutation(std::int64_t n, std::uint64_t seed, std::uint64_t stream) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::size_t i = order.size() - 1; i > 0; --i)
    std::swap(order[i], order[uniform_below(i + 1, seed, i, stream)]);
  return order;
}

}  // namespace

Sampler::Sampler(std::int64_t n_rows, std::int64_t batch, bool shuffle, std::uint64_t seed)
    : n_rows_(n_rows), batch_(batch), shuffle_(shuffle), seed_(seed), bins_per_epoch_(n_rows) {
  check(n_rows > 0 && batch > 0, "Sampler: needs rows and a batch size");
}

Sampler::Sampler(std::vector<std::int64_t> lengths, std::int64_t capacity, std::int64_t batch,
                 bool shuffle, std::uint64_t seed)
    : Sampler(std::ssize(lengths), batch, shuffle, seed) {
  lengths_ = std::move(lengths);
  capacity_ = capacity;
  bins_per_epoch_ = epoch(0).count();
}

std::vector<std::int64_t> Sampler::batch(std::int64_t index) const {
  std::vector<std::int64_t> rows;
  for (std::int64_t i = index * batch_; i < (index + 1) * batch_; ++i) {
    const auto bin = epoch(i / bins_per_epoch_)[i % bins_per_epoch_];
    rows.insert(rows.end(), bin.begin(), bin.end());
  }
  return rows;
}

// Keeps the bins until another epoch is asked for: a cache, not state.
const Bins& Sampler::epoch(std::int64_t number) const {
  if (number != kept_) {
    bins_ = fill(number);
    kept_ = number;
  }
  return bins_;
}

Bins Sampler::fill(std::int64_t number) const {
  const auto stream = static_cast<std::uint64_t>(number);
  Bins bins;
  if (shuffle_) {
    bins.rows = permutation(n_rows_, seed_, stream | kRowStream);
  } else {
    bins.rows.resize(static_cast<std::size_t>(n_rows_));
    std::iota(bins.rows.begin(), bins.rows.end(), std::int64_t{0});
  }
  if (lengths_.empty()) {
    bins.ends.resize(bins.rows.size());
    std::iota(bins.ends.begin(), bins.ends.end(), std::int64_t{1});
    return bins;
  }
  if (!shuffle_) return next_fit(lengths_, bins.rows, capacity_);
  const Bins packed = best_fit_decreasing(lengths_, bins.rows, capacity_);
  bins.rows.clear();
  for (std::int64_t i : permutation(packed.count(), seed_, stream | kBinStream)) {
    bins.rows.insert(bins.rows.end(), packed[i].begin(), packed[i].end());
    bins.ends.push_back(std::ssize(bins.rows));
  }
  return bins;
}

}  // namespace lk
