// Launching kernels: every launch is checked and named, and grids are sized in 64 bits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/cuda_check.h"

namespace lk {

using i64 = std::int64_t;

__host__ __device__ constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// Grid dimensions from 64-bit counts; an excess is an error of ours, never a silent wrap.
inline dim3 grid_of(i64 x, i64 y = 1, i64 z = 1) {
  check(x <= INT32_MAX && y <= 65535 && z <= 65535, "cuda: grid (", x, ",", y, ",", z,
        ") is too large");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Runs `kernel` on the stream; an empty grid is no work and no launch. Dynamic shared memory beyond
// 48 KiB has to be asked for. Throws Error with the kernel's name if the launch is refused.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t stream, const Args&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > 48 * 1024)
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  cuda_check(cudaGetLastError(), name);
}

}  // namespace lk
