#include <numeric>

#include "tensor/error.h"
#include "tensor/philox.h"
#include "text/dataset.h"

namespace lk {

namespace {

// Streams of the sampler never meet those of dropout masks, whose second counter stays below 2^63.
constexpr std::uint64_t kSamplerStream = std::uint64_t{1} << 63;

// A uniform whole number in [0, bound): draws of 64 bits, those above the last multiple of bound
// drawn again.
std::uint64_t uniform_below(std::uint64_t bound, std::uint64_t seed, std::uint64_t element,
                            std::uint64_t epoch) {
  const std::uint64_t limit = ~std::uint64_t{0} - (~std::uint64_t{0} % bound + 1) % bound;
  for (std::uint64_t attempt = 0;; ++attempt) {
    const Philox4 bits = philox(seed, element | attempt << 48, epoch | kSamplerStream);
    for (int half = 0; half < 2; ++half) {
      const std::uint64_t draw =
          static_cast<std::uint64_t>(bits.v[2 * half]) << 32 | bits.v[2 * half + 1];
      if (draw <= limit) return draw % bound;
    }
  }
}

}  // namespace

Sampler::Sampler(std::int64_t n_rows, std::int64_t batch, bool shuffle, std::uint64_t seed)
    : n_rows_(n_rows), batch_(batch), shuffle_(shuffle), seed_(seed) {
  check(n_rows > 0 && batch > 0, "Sampler: needs rows and a batch size");
}

std::vector<std::int64_t> Sampler::batch(std::int64_t index) const {
  std::vector<std::int64_t> rows;
  rows.reserve(static_cast<std::size_t>(batch_));
  for (std::int64_t i = index * batch_; i < (index + 1) * batch_; ++i) {
    const std::int64_t epoch = i / n_rows_, place = i % n_rows_;
    rows.push_back(shuffle_ ? order(epoch)[static_cast<std::size_t>(place)] : place);
  }
  return rows;
}

// Fisher-Yates. Kept until another epoch is asked for: a cache, not state.
const std::vector<std::int64_t>& Sampler::order(std::int64_t epoch) const {
  if (epoch != epoch_) {
    order_.resize(static_cast<std::size_t>(n_rows_));
    std::iota(order_.begin(), order_.end(), std::int64_t{0});
    for (std::size_t i = order_.size() - 1; i > 0; --i)
      std::swap(order_[i],
                order_[uniform_below(i + 1, seed_, i, static_cast<std::uint64_t>(epoch))]);
    epoch_ = epoch;
  }
  return order_;
}

}  // namespace lk
