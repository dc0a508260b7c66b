// One launch over many buffers: a table of them travels as the kernel's parameter (up to 32 KiB, no upload,
// fixed once captured in a graph). Each buffer is a slot, cut into chunks of kSlotChunk elements, one block
// each, which finds its slot by binary search. More than kMaxSlots slots: several launches.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/scratch.h"

namespace lk {

inline constexpr int kSlotChunk = kSumPiece, kSlotThreads = 256;
inline constexpr int kMaxSlots = 384;

// first_chunk[i] is the number of slot i's first chunk among all chunks of the launch.
template <class Slot>
struct SlotTable {
  int n = 0;
  std::int32_t first_chunk[kMaxSlots + 1] = {};
  Slot slots[kMaxSlots];
};

// The slot of this block's chunk: the last slot whose first chunk is not behind it.
template <class Slot>
__device__ __forceinline__ int slot_of_block(const SlotTable<Slot>& table) {
  int low = 0, high = table.n - 1, chunk = static_cast<int>(blockIdx.x);
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= chunk)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Fills tables of at most kMaxSlots slots and calls flush(table, chunks) for each.
template <class Slot, class Range, class MakeSlot, class Flush>
void for_each_table(const Range& range, MakeSlot make_slot, Flush flush) {
  SlotTable<Slot> table;
  i64 chunks = 0;
  auto emit = [&] {
    if (chunks > 0) flush(table, chunks);
    table.n = 0, chunks = 0;
  };
  for (const auto& item : range) {
    Slot slot = make_slot(item);
    i64 more = ceil_div(slot.numel, kSlotChunk);
    if (more == 0) continue;
    check(more <= INT32_MAX / 2, "cuda: tensor too large for a table of slots");
    if (table.n == kMaxSlots || chunks + more > INT32_MAX) emit();
    table.slots[table.n] = slot;
    table.first_chunk[table.n++] = static_cast<std::int32_t>(chunks);
    chunks += more;
  }
  emit();
}

}  // namespace lk
