#include "tensor/block_cache.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {
namespace {
constexpr std::size_t kAlignment = 256;  // cache lines, vector loads and cuBLAS all want less
constexpr std::size_t kSmall = std::size_t{1} << 20;

std::size_t rounded(std::size_t bytes) {
  std::size_t unit = bytes < kSmall ? kAlignment : std::size_t{64} << 10;
  return (std::max<std::size_t>(bytes, 1) + unit - 1) / unit * unit;
}
// A cached block may be larger than asked for by at most an eighth (or 64 KiB): bounded waste.
bool fits(std::size_t block, std::size_t wanted) {
  return block <= wanted + std::max<std::size_t>(wanted / 8, std::size_t{64} << 10);
}
}  // namespace

BlockCache::~BlockCache() { trim(); }

void* BlockCache::allocate(std::size_t bytes) {
  void* block = find_or_allocate(bytes);
  if (recorded_ && block) recorded_->insert(block);
  return block;
}

void* BlockCache::find_or_allocate(std::size_t bytes) {
  std::size_t wanted = rounded(bytes);
  // Of equal blocks, takes the one at the lowest address: the choice must not depend on the order
  // in which blocks came back, or identical steps would not get identical addresses.
  auto it = unused_.lower_bound({wanted, nullptr});
  if (it != unused_.end() && fits(it->first, wanted)) {
    void* block = it->second;
    used_.emplace(block, unused_.extract(it));
    return block;
  }
  void* block = malloc_(wanted);
  if (!block) {  // last resort: return what is cached and try once more
    trim();
    block = malloc_(wanted);
    if (!block) return nullptr;
  }
  ++driver_allocations_;
  reserved_bytes_ += static_cast<std::int64_t>(wanted);
  peak_reserved_bytes_ = std::max(peak_reserved_bytes_, reserved_bytes_);
  BlockSet one = {{wanted, block}};
  used_.emplace(block, one.extract(one.begin()));
  return block;
}

bool BlockCache::release(void* block) noexcept {
  auto it = used_.find(block);
  if (it == used_.end()) return false;
  unused_.insert(std::move(it->second));
  used_.erase(it);
  return true;
}

void BlockCache::trim() {
  for (auto it = unused_.begin(); it != unused_.end();) {
    const auto [size, block] = *it;
    if (recorded_ && recorded_->contains(block)) {
      ++it;
      continue;
    }
    free_(block, size);
    reserved_bytes_ -= static_cast<std::int64_t>(size);
    it = unused_.erase(it);
  }
}

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
