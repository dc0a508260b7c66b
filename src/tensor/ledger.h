// Ledger: how many bytes are live, and were live at most, for each purpose.
//
// Note [Memory by purpose]: every allocation names its Tag. Because activation gradients (Backward)
// and parameter gradients (Gradients) are different tags, "only A and B hold gradients" is an
// equality that each run asserts, not a bound.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace lk {

enum class Tag : std::uint8_t {
  Weights,      // frozen base model
  Params,       // LoRA factors A and B (masters and compute-dtype copies)
  Activations,  // saved by the forward pass
  Gradients,    // of Parameters: only Parameter may allocate it
  Backward,     // gradients of activations, transient
  Optimizer,    // AdamW moments: only the optimizer may allocate it
  Workspace,    // scratch, batches, packed tiles
  KvCache,      // generation
};
inline constexpr int kTagCount = 8;
const char* tag_name(Tag tag);

class Ledger {
 public:
  struct Entry {
    std::int64_t live_bytes = 0, peak_bytes = 0, live_count = 0, total_count = 0;
  };

  void allocated(Tag tag, std::size_t bytes);
  void freed(Tag tag, std::size_t bytes);
  const Entry& operator[](Tag tag) const { return entries_[static_cast<int>(tag)]; }
  // Sum over tags: bytes live now, and the most that were live at one moment.
  const Entry& total() const { return total_; }
  // Peaks restart from what is live now (used after loading, so that a run's peak is a run's).
  void reset_peaks();

 private:
  std::array<Entry, kTagCount> entries_{};
  Entry total_{};
};

}  // namespace lk
