// Launching kernels: every launch is checked and named, and grids are sized in 64 bits.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "cuda/cuda_check.h"

namespace lk {

using i64 = std::int64_t;

__host__ __device__ constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// Grid dimensions from 64-bit counts. Too large a count is an Error, never a silent wrap.
inline dim3 grid_of(i64 x, i64 y = 1, i64 z = 1) {
  check(x <= INT32_MAX && y <= 65535 && z <= 65535, "cuda: grid (", x, ",", y, ",", z,
        ") is too large");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// Note [Early launches]: a kernel launched with launch_early() may begin while the one before it in
// the stream still runs (programmatic dependent launch, from compute capability 9.0 on). Its blocks
// are then in place, and its weights on their way, when that one ends: between the small kernels of
// decoding this is most of the time. Every thread of such a kernel calls wait_for_previous() before
// it touches anything that another kernel may write. After that call everything launched earlier is
// finished and visible, as with a plain launch, since each kernel of a chain waits for the one
// before. Before the call it may read frozen weights, and what the one kernel right before it does
// not write: earlier ones are finished when it begins, as every block of that one has waited for
// them. Kernels that may write weights (copies, the optimizer) are launched plainly, and a kernel
// that follows a plain launch is not launched early: it and all kernels after it begin when the
// weights are there.
inline bool& early_allowed() {
  thread_local bool allowed = false;
  return allowed;
}

// The first statement of a kernel that is launched early, except for loads of frozen weights.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();  // the next kernel may take its place
#endif
}

// Lets the kernel use `bytes` of dynamic shared memory, beyond the 48 KiB that all its shared
// memory may take by default. Threads that launch one kernel with unlike sizes share its limit on
// a device, so that only grows: lowered, it would refuse what another thread is about to launch.
inline void allow_shared(const char* name, const void* kernel, std::size_t bytes) {
  if (bytes <= 32 * 1024) return;  // the rest may be shared memory that the kernel itself declares
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> limits;
  int device = 0;
  cuda_check(cudaGetDevice(&device), name);
  const std::lock_guard lock(mutex);
  std::size_t& limit = limits[{kernel, device}];
  if (bytes <= limit) return;
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             name);
  limit = bytes;
}

// Whether a block may have so much shared memory: 99 KiB on compute capability 8.6 and 8.9, 163 on 8.0, 227 on 9.0.
inline bool has_shared(std::size_t bytes) {
  static const std::size_t most = [] {
    int device = 0, limit = 0;
    cuda_check(cudaGetDevice(&device), "cudaGetDevice");
    cuda_check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "reading the shared memory's size");
    return static_cast<std::size_t>(limit);
  }();
  return bytes <= most;
}

// Blocks of a kernel that the current GPU runs at a time.
template <class... Params>
int resident_blocks(const char* name, void (*kernel)(Params...), int threads,
                    std::size_t shared_bytes) {
  allow_shared(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  int device = 0, processors = 0, blocks = 0;
  cuda_check(cudaGetDevice(&device), name);
  cuda_check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), name);
  cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
             name);
  return std::max(blocks, 1) * processors;
}

// Runs `kernel` on the stream; an empty grid is no work and no launch. Throws Error with the
// kernel's name if the launch is refused.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t stream, const Args&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  allow_shared(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  cuda_check(cudaGetLastError(), name);
  early_allowed() = false;
}

inline bool early_supported() {
  static const bool supported = [] {
    int device = 0, major = 0;
    cuda_check(cudaGetDevice(&device), "cudaGetDevice");
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
               "compute capability");
    return major >= 9;
  }();
  return supported;
}

// launch() with one attribute, if `use`. Whether the next kernel may begin early is the caller's to say.
template <class... Params, class... Args>
void launch_with(cudaLaunchAttribute attribute, bool use, const char* name,
                 void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                 cudaStream_t stream, const Args&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args));
  allow_shared(name, reinterpret_cast<const void*>(kernel), shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = use ? 1 : 0;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

// launch() for a kernel that may begin early: Note [Early launches].
template <class... Params, class... Args>
void launch_early(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                  std::size_t shared_bytes, cudaStream_t stream, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  launch_with(early, early_allowed() && early_supported(), name, kernel, grid, block, shared_bytes,
              stream, args...);
  early_allowed() = true;
}

}  // namespace lk
