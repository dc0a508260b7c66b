// BlockCache: a caching allocator for one ordered stream of work.
//
// Freed blocks are kept and reused (best fit, bounded waste). As all work of a Backend is ordered, a block
// may be handed out again as soon as its last user was *submitted*. Identical steps therefore get
// identical addresses, and from the second on the driver is not called: `driver_allocations()` stays
// constant. Steps of ever new sizes would keep ever more blocks: Idle::Bounded ends that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lk {

class BlockCache {
 public:
  using Malloc = std::function<void*(std::size_t bytes)>;  // nullptr when out of memory
  using Free = std::function<void(void*, std::size_t bytes)>;

  // Bounded: what is reserved stays within 3/2 of the most that was in use at a time, and 64 MiB.
  enum class Idle { Kept, Bounded };
  BlockCache(Malloc malloc, Free free, Idle idle = Idle::Kept)
      : malloc_(std::move(malloc)), free_(std::move(free)), idle_(idle) {}
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // At least `bytes` bytes, 256-byte aligned; nullptr if there is no memory even without idle blocks.
  void* allocate(std::size_t bytes);
  // Takes a block back. Returns false, and does nothing, if allocate() did not hand it out.
  bool release(void* block) noexcept;
  // Returns every unused block to the driver, except those that a recording has noted.
  void trim();

  // Notes every block that is requested between begin and end, when those that are free again leave the
  // cache and are returned: recorded work will use them each time it runs, so nobody else may have them
  // until give_back(). `shared` are an earlier recording's, for this one too; all are free at its end.
  using Blocks = std::vector<std::pair<void*, std::size_t>>;
  void begin_recording(const Blocks& shared = {});
  Blocks end_recording();
  void give_back(const Blocks& blocks);

  std::int64_t driver_allocations() const { return driver_allocations_; }
  std::int64_t reserved_bytes() const { return reserved_bytes_; }
  std::int64_t peak_reserved_bytes() const { return peak_reserved_bytes_; }

 private:
  using BlockSet = std::set<std::pair<std::size_t, void*>>;  // by size, then by address
  // A block in use keeps its node of the set, so release() allocates nothing.
  struct Used {
    BlockSet::node_type block;
    std::size_t wanted;
  };
  void* find_or_allocate(std::size_t bytes);
  void* use(BlockSet::node_type block, std::size_t wanted);
  BlockSet::iterator give_up(BlockSet::iterator block);
  // The bound of all blocks if `wanted` more bytes come into use.
  std::int64_t most_reserved(std::size_t wanted) const;
  // Gives idle blocks up until `wanted` more bytes are within the bound: first the ones just too small.
  void make_room(std::size_t wanted);

  Malloc malloc_;
  Free free_;
  Idle idle_;
  BlockSet unused_;
  std::unordered_map<void*, Used> used_;
  std::optional<std::set<void*>> recorded_;
  Blocks shared_;
  std::int64_t driver_allocations_ = 0, reserved_bytes_ = 0, peak_reserved_bytes_ = 0;
  std::int64_t used_bytes_ = 0, most_used_bytes_ = 0;  // as they were asked for
};

}  // namespace lk
