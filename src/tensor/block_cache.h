// BlockCache: a caching allocator for one ordered stream of work.
//
// Freed blocks are kept and reused (best fit, bounded waste). Because all work of a Backend is
// ordered, a block may be handed out again as soon as its last user was *submitted*. Identical
// steps therefore ask for identical blocks in the same order and get identical addresses, and from
// the second step on the driver is not called at all: `driver_allocations()` stays constant.
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

  BlockCache(Malloc malloc, Free free) : malloc_(std::move(malloc)), free_(std::move(free)) {}
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // A block of at least `bytes` bytes, 256-byte aligned. Returns nullptr when the device is out of
  // memory even after every unused block was returned to the driver.
  void* allocate(std::size_t bytes);
  // Takes a block back. Returns false, and does nothing, if allocate() did not hand it out.
  bool release(void* block) noexcept;
  // Returns every unused block to the driver, except those that a recording has noted.
  void trim();

  // Notes every block that is requested between begin and end. At the end, noted blocks that are
  // free again leave the cache and are returned: recorded work will use them each time it runs, so
  // nobody else may have them until give_back(). `shared` are the blocks of an earlier recording,
  // which this one may use as well; all of them must be free again at its end.
  using Blocks = std::vector<std::pair<void*, std::size_t>>;
  void begin_recording(const Blocks& shared = {});
  Blocks end_recording();
  void give_back(const Blocks& blocks);

  std::int64_t driver_allocations() const { return driver_allocations_; }
  std::int64_t reserved_bytes() const { return reserved_bytes_; }
  std::int64_t peak_reserved_bytes() const { return peak_reserved_bytes_; }

 private:
  void* find_or_allocate(std::size_t bytes);

  Malloc malloc_;
  Free free_;
  using BlockSet = std::set<std::pair<std::size_t, void*>>;  // by size, then by address
  BlockSet unused_;
  // A block in use keeps its node of the set, so release() allocates nothing.
  std::unordered_map<void*, BlockSet::node_type> used_;
  std::optional<std::set<void*>> recorded_;
  Blocks shared_;
  std::int64_t driver_allocations_ = 0, reserved_bytes_ = 0, peak_reserved_bytes_ = 0;
};

}  // namespace lk
