// Codes of a few bits as tensor-core operands: what integer_row.cuh and linear_row.cuh share.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace lk::operands {

using u8 = std::uint8_t;
using u32 = std::uint32_t;

// From shared memory.
template <class T>
__device__ __forceinline__ T read(const u8* p) {
  return *reinterpret_cast<const T*>(p);
}
__device__ __forceinline__ float read_half(const u8* p) {
  return __half2float(__ushort_as_half(read<unsigned short>(p)));
}
// Four bytes from an address that is a multiple of kAlign.
template <int kAlign>
__device__ __forceinline__ u32 read4(const u8* p) {
  if constexpr (kAlign >= 4) return read<u32>(p);
  if constexpr (kAlign == 2)
    return __byte_perm(read<unsigned short>(p), read<unsigned short>(p + 2), 0x5410);
  return __byte_perm(__byte_perm(*p, p[1], 0x0040), __byte_perm(p[2], p[3], 0x0040), 0x5410);
}

// a & mask | b in one instruction: compilers take two where they know more of b.
__device__ __forceinline__ u32 and_or(u32 a, u32 mask, u32 b) {
  u32 y;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;\n" : "=r"(y) : "r"(a), "r"(mask), "r"(b));
  return y;
}

// Bits 0 to 3 of `bits` as bit `to` of four bytes.
__device__ __forceinline__ u32 spread(u32 bits, int to) {
  return ((bits & 15u) * 0x00204081u & 0x01010101u) << to;
}

// Byte j as a number: in the mantissa of 2^23 it is 2^23 and so much.
__device__ __forceinline__ float byte_of(u32 bytes, int j) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u + static_cast<u32>(j))) - 0x1p23f;
}

// A table of operands for each byte, with a copy of each entry in every bank.
constexpr int kCopiesOfEntry = 32;
template <class Format>
__device__ __forceinline__ void fill_table(unsigned char* table, const Format& format) {
  constexpr int kPacks = kCopiesOfEntry / 4;  // a thread writes a part of an entry's copies
  const int threads = static_cast<int>(blockDim.x) / 256, part = kPacks / threads;
  const u32 entry = format.pair_of(threadIdx.x / threads);
  auto* copies = reinterpret_cast<uint4*>(table) + threadIdx.x * part;
  for (int i = 0; i < part; ++i) copies[i] = {entry, entry, entry, entry};
}
__device__ __forceinline__ u32 bank_of(int lane) { return static_cast<u32>(lane) * 4; }
// What the four bytes of `codes` stand for.
__device__ __forceinline__ void look_up(const unsigned char* table, u32 bank, u32 codes,
                                        u32 (&w)[4]) {
  constexpr u32 kMask = 255u * kCopiesOfEntry * 4;
  static_assert(kCopiesOfEntry == 32);
  w[0] = read<u32>(table + and_or(codes << 7, kMask, bank));
  w[1] = read<u32>(table + and_or(codes >> 1, kMask, bank));
  w[2] = read<u32>(table + and_or(codes >> 9, kMask, bank));
  w[3] = read<u32>(table + and_or(codes >> 17, kMask, bank));
}

}  // namespace lk::operands
