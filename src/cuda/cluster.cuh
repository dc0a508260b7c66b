// Clusters of blocks, which may read each other's shared memory (compute capability 9.0).
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace lk {

// launch() in clusters of `size` blocks along x, at most 8; the grid is a multiple of it.
template <class... Params, class... Args>
void launch_clusters(const char* name, void (*kernel)(Params...), dim3 grid, unsigned size,
                     dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                     const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = size;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  launch_with(cluster, size > 1, name, kernel, grid, block, shared_bytes, stream, args...);
  early_allowed() = false;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ int cluster_size() {
  int n;
  asm("mov.u32 %0, %%cluster_nctaid.x;\n" : "=r"(n));
  return n;
}
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctaid.x;\n" : "=r"(rank));
  return rank;
}
// A barrier for all threads of the cluster's blocks: what they wrote to shared memory before is
// visible to all of them after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::
                   : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t address, float4 x) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "f"(x.x), "f"(x.y),
               "f"(x.z), "f"(x.w)
               : "memory");
}
// Reads the same place of the shared memory of the cluster's block `rank`.
__device__ __forceinline__ float4 load_shared_of(std::uint32_t address, int rank) {
  float4 x;
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there]; }\n"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "r"(address), "r"(rank)
      : "memory");
  return x;
}

#endif

}  // namespace lk
