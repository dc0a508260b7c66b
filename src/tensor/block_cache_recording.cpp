// Memory of recordings: what a BlockCache sets apart for work that will run again.
#include "tensor/block_cache.h"
#include "tensor/error.h"

namespace lk {

void BlockCache::begin_recording(const Blocks& shared) {
  check(!recorded_, "allocator: already recording");
  recorded_.emplace();
  for (auto [block, size] : shared) recorded_->insert(block);
  shared_ = shared;
  give_back(shared);
}

BlockCache::Blocks BlockCache::end_recording() {
  check(recorded_.has_value(), "allocator: not recording");
  Blocks blocks;
  for (auto it = unused_.begin(); it != unused_.end();) {
    if (recorded_->contains(it->second)) {
      blocks.emplace_back(it->second, it->first);
      it = unused_.erase(it);
    } else {
      ++it;
    }
  }
  recorded_.reset();
  for (auto [block, size] : shared_)
    check(!used_.contains(block), "allocator: a value was left in the memory of a recording");
  shared_.clear();
  return blocks;
}

void BlockCache::give_back(const Blocks& blocks) {
  for (auto [block, size] : blocks) unused_.emplace(size, block);
}

}  // namespace lk
