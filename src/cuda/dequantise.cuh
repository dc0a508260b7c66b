// What the dequantising kernels share: a thread makes eight neighbouring values of a row and writes
// them in one or two stores of 16 bytes, so a warp writes 512 bytes of BF16 side by side.
#pragma once

#include <cuda_fp16.h>

#include "cuda/pack.cuh"
#include "tensor/quantised.h"

namespace lk {

constexpr int kOctet = 8, kDequantiseThreads = 256, kOctetsPerThread = 2;

// Rounds an octet to what the format's own package computes in; one branch for all eight.
__device__ __forceinline__ void round_to(RoundedTo to, float (&v)[kOctet]) {
  if (to == RoundedTo::BF16) {
#pragma unroll
    for (int j = 0; j < kOctet; ++j) v[j] = __bfloat162float(__float2bfloat16_rn(v[j]));
  } else if (to == RoundedTo::F16) {
#pragma unroll
    for (int j = 0; j < kOctet; ++j) v[j] = __half2float(__float2half_rn(v[j]));
  }
}

// Decoder: `static constexpr bool kTable`, with it `float table[16]`, and
//   __device__ void operator()(u32 row, u32 octet, const float* table, float (&v)[8]) const
// It stays a __grid_constant__: a table that is indexed would make each thread copy it into local memory.
// `ids` chooses the rows of an embedding; null: all in order. The last octet of a row may reach over
// `cols`: what lies there is not written.
template <class Decoder, class T, bool kPacked>
__global__ void __launch_bounds__(kDequantiseThreads)
    dequantise_kernel(const __grid_constant__ Decoder decode, Matrix<T> to,
                      const int* __restrict__ ids, std::uint32_t octets, std::uint32_t cols,
                      std::uint32_t total) {
  __shared__ float table[16];
  if constexpr (Decoder::kTable) {
    if (threadIdx.x < 16) table[threadIdx.x] = decode.table[threadIdx.x];
    __syncthreads();
  }
  const std::uint32_t first = blockIdx.x * (kDequantiseThreads * kOctetsPerThread) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kOctetsPerThread; ++u) {
    const std::uint32_t i = first + u * kDequantiseThreads;
    if (i >= total) return;
    const std::uint32_t row = i / octets, octet = i - row * octets;
    float v[kOctet];
    decode(ids ? static_cast<std::uint32_t>(ids[row]) : row, octet, table, v);
    T* y = to.at(row, static_cast<i64>(octet) * kOctet);
    if constexpr (kPacked) {
      if constexpr (sizeof(T) == 4) {
        const float low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
        store_pack<4>(y, low);
        store_pack<4>(y + 4, high);
      } else {
        store_pack<kOctet>(y, v);
      }
    } else {
      for (int j = 0; j < kOctet; ++j)
        if (octet * kOctet + j < cols) y[j] = from_float<T>(v[j]);
    }
  }
}

// Writes the rows that `ids` chooses, or all, to `to`. Launched plainly: a product may fetch what this
// writes before it waits (Note [Early launches]).
template <class Decoder>
void launch_dequantise(const char* name, const Decoder& decoder, const Tensor& to, const int* ids,
                       cudaStream_t stream) {
  const i64 octets = ceil_div(to.cols(), kOctet), total = to.rows() * octets;
  check(total <= UINT32_MAX - 4096, name, ": ", to.shape(), " is too large");
  dispatch_device(to.dtype(), [&]<class T>() {
    auto go = [&]<bool kPacked>() {
      launch(name, dequantise_kernel<Decoder, device_t<T>, kPacked>,
             grid_of(ceil_div(total, kDequantiseThreads * kOctetsPerThread)),
             dim3(kDequantiseThreads), 0, stream, decoder, matrix<T>(to), ids,
             static_cast<std::uint32_t>(octets), static_cast<std::uint32_t>(to.cols()),
             static_cast<std::uint32_t>(total));
    };
    packable(16 / static_cast<i64>(sizeof(T)), to.cols(), to) && to.cols() % kOctet == 0
        ? go.template operator()<true>()
        : go.template operator()<false>();
  });
}

// dequantise_blocks.cu
void dequantise_blocks(const QuantisedMatrix& q, const Tensor& to, const int* ids,
                       cudaStream_t stream);

}  // namespace lk
