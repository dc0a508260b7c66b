// Sampler: which rows make up which batch of a run.
#pragma once

#include <cstdint>
#include <vector>

#include "text/packing.h"

namespace lk {

// Says which rows make up batch number `index`, counted over the whole run. An epoch is a sequence
// of bins that holds every row once; without packing each row is a bin. Batches take bins from one
// epoch after another: the last batch of an epoch goes on into the next.
// The answer is a pure function of the arguments, so that a resumed run has nothing to restore.
class Sampler {
 public:
  // A batch is `batch` rows: in file order, wrapping round, or shuffled anew in each epoch.
  Sampler(std::int64_t n_rows, std::int64_t batch, bool shuffle, std::uint64_t seed);
  // A batch is `batch` bins of at most `capacity` tokens, filled with whole rows of these lengths.
  // Shuffled: best fit decreasing over the epoch's order of rows, then the bins are shuffled; all
  // epochs have equally many bins, equally full. In file order: next fit.
  Sampler(std::vector<std::int64_t> lengths, std::int64_t capacity, std::int64_t batch,
          bool shuffle, std::uint64_t seed);

  std::vector<std::int64_t> batch(std::int64_t index) const;
  // The bins of an epoch in the order in which they are used. The reference is valid until the next
  // call.
  const Bins& epoch(std::int64_t number) const;
  std::int64_t bins_per_epoch() const { return bins_per_epoch_; }

 private:
  Bins fill(std::int64_t number) const;

  std::int64_t n_rows_, batch_;
  bool shuffle_;
  std::uint64_t seed_;
  std::vector<std::int64_t> lengths_;  // empty: no packing
  std::int64_t capacity_ = 0, bins_per_epoch_;
  mutable std::int64_t kept_ = -1;  // the epoch whose bins are kept; one thread at a time
  mutable Bins bins_;
};

}  // namespace lk
