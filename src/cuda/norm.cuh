// What the kernels of RMSNorm and LayerNorm share.
#pragma once

#include "cuda/launch.cuh"

namespace lk {

// Threads of a block that has a row to itself: whole warps, about two packs per thread.
inline unsigned norm_threads(i64 cols, int pack) {
  unsigned threads = 64;
  while (threads < 512 && static_cast<i64>(threads) * pack * 2 < cols) threads *= 2;
  return threads;
}

}  // namespace lk
