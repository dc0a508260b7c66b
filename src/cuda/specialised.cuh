// What warps of one block with different tasks need on Hopper (compute capability 9.0): barriers in
// shared memory, bulk copies out of it, and registers that move from one warpgroup to another. PTX ISA,
// "mbarrier", "cp.async.bulk" and "setmaxnreg".
#pragma once

#include <cstdint>

#include "cuda/wgmma.cuh"

namespace lk {

#ifdef LK_DEVICE_HAS_WGMMA

// Eight bytes of shared memory. Its phases end when `count` threads have arrived; phase n is waited for
// by n's parity, and phase -1, by which one may pass at first, counts as ended.
struct SharedBarrier {
  std::uint32_t address;

  __device__ __forceinline__ void init(int count) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(address), "r"(count) : "memory");
  }
  // What this thread wrote before is visible to those who have waited for the phase.
  __device__ __forceinline__ void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(address) : "memory");
  }
  __device__ __forceinline__ void wait(int phase) const {
    std::uint32_t ended;
    do {
      asm volatile(
          "{ .reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p; }\n"
          : "=r"(ended)
          : "r"(address), "r"(phase & 1)
          : "memory");
    } while (!ended);
  }
};

// Waits for the `THREADS` threads that name the same barrier, 1 to 15.
template <int THREADS>
__device__ __forceinline__ void sync_threads_of(int name) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(name), "n"(THREADS) : "memory");
}

// Arrives at that barrier for others, without waiting.
template <int THREADS>
__device__ __forceinline__ void arrive_for(int name) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "n"(THREADS) : "memory");
}

// The registers that each thread of this warpgroup may use from here on; all of it executes them.
template <int N>
__device__ __forceinline__ void give_registers_down_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void take_registers_up_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

// Starts copying `bytes` of shared memory to global memory, or adding them to it as F32 (ADD). Whoever
// wrote them has called fence_async_proxy() before it met this thread at a barrier.
template <bool ADD>
__device__ __forceinline__ void bulk_store(float* to, std::uint32_t from, int bytes) {
  if constexpr (ADD)
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n" ::"l"(to),
        "r"(from), "r"(bytes)
        : "memory");
  else
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}
// Until all that this thread started has been read from shared memory; until it is written.
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group 0;\n" ::: "memory");
}

// Counts in global memory by which blocks take turns: end_turn() publishes what this thread wrote before,
// by bulk stores too, to whoever has waited for the new count.
__device__ __forceinline__ void wait_for_turn(const std::uint32_t* count, std::uint32_t turn) {
  std::uint32_t n;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(n) : "l"(count) : "memory");
  } while (n != turn);
  asm volatile("fence.proxy.async;\n" ::: "memory");
}
__device__ __forceinline__ void end_turn(std::uint32_t* count) {
  asm volatile("fence.proxy.async;\nred.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(count)
               : "memory");
}

// The next number of a count.
__device__ __forceinline__ std::uint32_t take_ticket(std::uint32_t* count) {
  std::uint32_t ticket;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;\n"
               : "=r"(ticket)
               : "l"(count)
               : "memory");
  return ticket;
}

// Stores an A fragment (mma.cuh) as its transpose: eight rows of 16 bytes each for its blocks a0 to a3,
// whose addresses lanes 8 i to 8 i + 7 give.
__device__ __forceinline__ void store_transposed(std::uint32_t address, const Fragment4& a) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
      "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3])
      : "memory");
}

#endif  // LK_DEVICE_HAS_WGMMA

}  // namespace lk
