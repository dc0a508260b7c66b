// Ledger: how many bytes are live, and the peak, for each purpose.
//
// Note [Memory by purpose]: every allocation names its Tag. Because activation gradients (Backward)
// and parameter gradients (Gradients) are different tags, "only A and B hold gradients" is an
// equality that each run asserts, not a bound.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

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
  // The sum over tags: bytes live now, and the most that were live at one moment.
  const Entry& total() const { return total_; }
  // Counts some bytes of an allocation under another purpose than its own for as long as the Share
  // lives: one buffer may serve two purposes.
  class Share;
  // Restarts the peaks from what is live now: after loading, so that they describe the run alone.
  void reset_peaks();

 private:
  void move(Tag from, Tag to, std::int64_t bytes);

  std::array<Entry, kTagCount> entries_{};
  Entry total_{};
};

class Ledger::Share {
 public:
  Share() = default;  // shares nothing
  // Counts `bytes` of what lives under `from` as `to`. The ledger must outlive the share.
  Share(Ledger& ledger, Tag from, Tag to, std::int64_t bytes)
      : ledger_(&ledger), from_(from), to_(to), bytes_(bytes) {
    ledger.move(from, to, bytes);
  }
  ~Share() { end(); }
  Share(Share&& other) noexcept { *this = std::move(other); }
  Share& operator=(Share&& other) noexcept {
    if (this == &other) return *this;
    end();
    ledger_ = std::exchange(other.ledger_, nullptr);
    from_ = other.from_, to_ = other.to_;
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  void end() {
    if (ledger_) ledger_->move(to_, from_, bytes_);
  }
  Ledger* ledger_ = nullptr;
  Tag from_{}, to_{};
  std::int64_t bytes_ = 0;
};

}  // namespace lk
