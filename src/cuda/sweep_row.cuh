// A block reads a long row, such as logits over a vocabulary, which begins wherever its length puts it: single
// elements up to the first 16-byte boundary and after the last, so odd vocabularies run at full width too.
#pragma once

#include "cuda/pack.cuh"

namespace lk {

// Calls f(integral_constant N, pointer, column, pack) so that the block's threads cover row[0, n)
// once. `pack` numbers the aligned packs (-1 for single elements), and a thread gets the same packs
// in every sweep.
template <class T, class F>
__device__ __forceinline__ void sweep_row(T* row, i64 n, F f) {
  constexpr int kN = 16 / sizeof(T);
  i64 misaligned = static_cast<i64>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  i64 head = min(n, misaligned ? kN - misaligned : 0);
  i64 packs = (n - head) / kN, tail = head + packs * kN;
  std::integral_constant<int, 1> one;
  if (threadIdx.x < head) f(one, row + threadIdx.x, i64{threadIdx.x}, i64{-1});
#pragma unroll 4
  for (i64 i = threadIdx.x; i < packs; i += blockDim.x)
    f(std::integral_constant<int, kN>{}, row + head + i * kN, head + i * kN, i);
  if (i64 col = tail + threadIdx.x; col < n) f(one, row + col, col, i64{-1});
}

}  // namespace lk
