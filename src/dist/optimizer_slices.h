// OptimizerSlices: which of the processes that train together updates which numbers and has their moments
// (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020,
// stage 1).
//
// A step's loss and the parameters, each from a multiple of kAlignment on, are one vector here. It is cut
// into as many slices as there are processes, as equal as borders allow. These lie where pieces begin
// (SliceKernels::piece()), so a slice may end amid a matrix, and yet each partial sum of the gradient's
// norm and each block of an update is computed whole by one process. No slice has more numbers than that of
// process 0: a plan of its memory holds for all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nn/adamw.h"

namespace lk {

// The moments of all processes together, for each parameter: what a checkpoint holds.
struct WholeMoments {
  std::vector<std::vector<float>> m, v;
};

class OptimizerSlices {
 public:
  static constexpr std::int64_t kAlignment = 64;  // in numbers: kernels read vectors
  static std::int64_t aligned(std::int64_t n) {
    return (n + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Numbers [begin, end), of the vector or of what is said.
  struct Range {
    std::int64_t begin = 0, end = 0;
    std::int64_t size() const { return end - begin; }
    bool operator==(const Range&) const = default;
  };

  // `piece`, a multiple of kAlignment: that of the device.
  OptimizerSlices(std::span<Parameter* const> parameters, std::int64_t piece, int size);

  int size() const { return static_cast<int>(ranges_.size()); }
  // The slice of a process, and the length of the longest.
  Range range(int rank) const { return ranges_[slice_of(rank)]; }
  std::int64_t longest() const;
  // Of each parameter the numbers that a process updates: for AdamW.
  std::vector<AdamW::Slice> of(int rank) const;
  std::int64_t numel(int rank) const;  // of these
  int with_loss() const;               // the process whose slice the loss is in
  // A process's partial sums of squares among those of all, which are in the order of the vector.
  Range sums(int rank) const { return sums_[slice_of(rank)]; }
  std::int64_t n_sums() const { return n_sums_; }

  // Calls f(tensor, from, to, at) for each part of `range`: numbers [from, to) of a tensor, the first of
  // them at number `at` of the range. Tensor 0 is the loss, 1 + i parameter i.
  template <class F>
  void for_each_part(Range range, const F& f) const {
    for (std::size_t t = first_in(range); t < numel_.size() && begin_[t] < range.end; ++t) {
      const Range part = part_of(t, range);
      if (part.size() > 0) f(t, part.begin, part.end, begin_[t] + part.begin - range.begin);
    }
  }

 private:
  std::size_t slice_of(int rank) const {
    return (static_cast<std::size_t>(rank) + first_) % ranges_.size();
  }
  std::int64_t border_near(std::int64_t target) const;
  Range part_of(std::size_t tensor, Range range) const;
  std::size_t first_in(Range range) const;
  std::int64_t numel_in(Range range) const;  // of parameters

  std::int64_t piece_, n_sums_ = 0;
  std::vector<std::int64_t> numel_, begin_;  // of each tensor; then where the vector ends
  std::vector<Range> ranges_, sums_;         // of each slice
  std::size_t first_ = 0;                    // the slice of process 0
};

}  // namespace lk
