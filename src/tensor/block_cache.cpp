#include "tensor/block_cache.h"

#include <algorithm>

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
std::int64_t signed_size(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }
}  // namespace

BlockCache::~BlockCache() { trim(); }

void* BlockCache::allocate(std::size_t bytes) {
  void* block = find_or_allocate(bytes);
  if (recorded_ && block) recorded_->insert(block);
  return block;
}

void* BlockCache::find_or_allocate(std::size_t bytes) {
  std::size_t wanted = rounded(bytes);
  const bool full =
      idle_ == Idle::Bounded && reserved_bytes_ + signed_size(wanted) > most_reserved(wanted);
  // Of equal blocks, that at the lowest address, whatever order they came back in: identical steps.
  auto it = unused_.lower_bound({wanted, nullptr});
  if (it != unused_.end() && (fits(it->first, wanted) || (full && it->first <= 2 * wanted)))
    return use(unused_.extract(it), wanted);
  if (full) make_room(wanted);
  void* block = malloc_(wanted);
  if (!block) {  // last resort: return what is cached and try once more
    trim();
    block = malloc_(wanted);
    if (!block) return nullptr;
  }
  ++driver_allocations_;
  reserved_bytes_ += signed_size(wanted);
  peak_reserved_bytes_ = std::max(peak_reserved_bytes_, reserved_bytes_);
  BlockSet one = {{wanted, block}};
  return use(one.extract(one.begin()), wanted);
}

void* BlockCache::use(BlockSet::node_type block, std::size_t wanted) {
  used_bytes_ += signed_size(wanted);
  most_used_bytes_ = std::max(most_used_bytes_, used_bytes_);
  void* const address = block.value().second;
  used_.emplace(address, Used{std::move(block), wanted});
  return address;
}

std::int64_t BlockCache::most_reserved(std::size_t wanted) const {
  const std::int64_t used = std::max(most_used_bytes_, used_bytes_ + signed_size(wanted));
  return used + used / 2 + (std::int64_t{64} << 20);
}

void BlockCache::make_room(std::size_t wanted) {
  while (!unused_.empty() && reserved_bytes_ + signed_size(wanted) > most_reserved(wanted)) {
    const auto larger = unused_.lower_bound({wanted, nullptr});
    give_up(std::prev(larger == unused_.begin() ? unused_.end() : larger));
  }
}

BlockCache::BlockSet::iterator BlockCache::give_up(BlockSet::iterator block) {
  free_(block->second, block->first);
  reserved_bytes_ -= signed_size(block->first);
  return unused_.erase(block);
}

bool BlockCache::release(void* block) noexcept {
  auto it = used_.find(block);
  if (it == used_.end()) return false;
  used_bytes_ -= signed_size(it->second.wanted);
  unused_.insert(std::move(it->second.block));
  used_.erase(it);
  return true;
}

void BlockCache::trim() {
  for (auto it = unused_.begin(); it != unused_.end();)
    it = recorded_ && recorded_->contains(it->second) ? std::next(it) : give_up(it);
}

}  // namespace lk
