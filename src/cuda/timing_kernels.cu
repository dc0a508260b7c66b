// What cublaslt_timing.cpp fills operands with, and how it compares results.
#include "cuda/launch.cuh"
#include "cuda/timing_kernels.h"

namespace lk {
namespace {

constexpr int kThreads = 256, kBlocks = 1024;

__device__ __forceinline__ std::uint64_t mixed(std::uint64_t z) {  // splitmix64's finaliser
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
// A finite number of magnitude 1/4 to 1 (E4M3: any exponent) from random bits.
template <class T>
__device__ __forceinline__ T number(std::uint32_t bits) {
  if constexpr (sizeof(T) == 4) return bits & 0x80ffffffu | 0x3e800000u;
  if constexpr (sizeof(T) == 2) return static_cast<T>((bits & 0x80ffu) | 0x3e80u);
  return static_cast<T>(bits & 0xf7u);
}
template <class T>
__global__ void __launch_bounds__(kThreads) fill_kernel(T* to, std::size_t n, std::uint64_t key) {
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += std::size_t{kThreads} * kBlocks)
    to[i] = number<T>(static_cast<std::uint32_t>(mixed(key + (i + 1) * 0x9e3779b97f4a7c15u)));
}
// sum += a sum over all bits that knows their places; integers, so that any order gives the same.
__global__ void __launch_bounds__(kThreads)
    bits_kernel(unsigned long long* sum, const std::uint16_t* of, std::size_t n) {
  unsigned long long mine = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < n;
       i += std::size_t{kThreads} * kBlocks)
    mine += mixed((i + 1) * 0x9e3779b97f4a7c15u + of[i]);
  atomicAdd(sum, mine);
}

}  // namespace

void fill_numbers(std::byte* to, std::size_t bytes, DType t, std::uint64_t key,
                  cudaStream_t stream) {
  const auto go = [&]<class T>(T) {
    launch("fill", fill_kernel<T>, dim3(kBlocks), dim3(kThreads), 0, stream,
           reinterpret_cast<T*>(to), bytes / sizeof(T), key);
  };
  dtype_size(t) == 4   ? go(std::uint32_t{})
  : dtype_size(t) == 2 ? go(std::uint16_t{})
                       : go(std::uint8_t{});
}

void add_bits(unsigned long long* sum, const std::byte* of, std::size_t bytes,
              cudaStream_t stream) {
  launch("bits", bits_kernel, dim3(kBlocks), dim3(kThreads), 0, stream, sum,
         reinterpret_cast<const std::uint16_t*>(of), bytes / 2);
}

}  // namespace lk
