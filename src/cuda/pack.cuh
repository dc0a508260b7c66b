// Element types on the device, and loads and stores of up to 16 bytes.
//
// A memory-bound kernel runs at bandwidth if each thread moves 16 bytes per instruction. That needs
// 16-byte alignment, which odd widths and column slices don't give, so kernels are compiled for a
// width of N elements and for 1, and `packable` chooses per call. Arithmetic is in F32 either way:
// same bits.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/launch.cuh"
#include "tensor/tensor.h"

namespace lk {

// The device's own bfloat16 has the layout of lk::bf16.
template <class T>
using device_t = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat16, T>;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return __float2bfloat16_rn(x);
}

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <int N, class T>
__device__ __forceinline__ void load_pack(const T* p, float (&x)[N]) {
  Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = to_float(pack.v[i]);
}

// Eight BF16 in four words, of which each is the upper half of a float.
__device__ __forceinline__ void unpack_bf16(const uint4& raw, float (&x)[8]) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <int N, class T>
__device__ __forceinline__ void store_pack(T* p, const float (&x)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(x[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// y (+)= x for N consecutive elements.
template <int N, class T>
__device__ __forceinline__ void write_pack(T* y, float (&x)[N], bool accumulate) {
  if (accumulate) {
    float old[N];
    load_pack<N>(y, old);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += old[i];
  }
  store_pack<N>(y, x);
}

// Asks for a line of 128 bytes to be in L2.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p));
}

// A matrix on the device: rows of a row-major tensor, `ld` elements apart.
template <class T>
struct Matrix {
  T* data;
  i64 ld;
  __device__ __forceinline__ T* at(i64 row, i64 col) const { return data + row * ld + col; }
};

// A tensor as a device Matrix; T is the host's element type (float or bf16).
template <class T>
Matrix<device_t<T>> matrix(const Tensor& x) {
  return {reinterpret_cast<device_t<T>*>(x.data<T>()), x.ld()};
}
template <class T>
Matrix<const device_t<T>> const_matrix(const Tensor& x) {
  return {reinterpret_cast<const device_t<T>*>(x.data<T>()), x.ld()};
}
template <class T>
device_t<T>* pointer(const Tensor& x) {
  return reinterpret_cast<device_t<T>*>(x.data<T>());
}

// Whether all these tensors may be read and written in packs of n along `width` columns.
template <class... Tensors>
bool packable(i64 n, i64 width, const Tensors&... tensors) {
  auto one = [n](const Tensor& x) {
    auto bytes = static_cast<std::uintptr_t>(n) * dtype_size(x.dtype());
    return reinterpret_cast<std::uintptr_t>(x.raw()) % bytes == 0 &&
           (x.rows() <= 1 || x.ld() % n == 0);
  };
  return width % n == 0 && (one(tensors) && ...);
}

// Calls f with float or bf16 for a dtype. The GPU has no F64: gradients are checked on the CPU.
template <class F>
decltype(auto) dispatch_device(DType t, F&& f) {
  switch (t) {
    case DType::F32:
      return f.template operator()<float>();
    case DType::BF16:
      return f.template operator()<bf16>();
    default:
      throw Error(concat("cuda: computes in f32 and bf16, not in ", dtype_name(t)));
  }
}

}  // namespace lk
