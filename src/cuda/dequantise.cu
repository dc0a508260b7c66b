// Dense matrices of quantised ones: bitsandbytes' NF4 and FP4, FP8 and 4-bit integers by groups. ggml's
// blocks are in dequantise_blocks.cu; tensor/quantised.h defines all formats.
//
// Shapes     to (N,K) BF16 or F32, rows `ld` apart; codes and scales as the format lays them out
// Plan       a thread: two octets of values (dequantise.cuh); tables of 16 values in shared memory,
//            where 16 words lie in 16 banks, so no lookup waits for another
// Bytes      codes and scales once, `to` once: 2.5 bytes a value for NF4 to BF16
// Numbers    those of the CPU's decoder, bit for bit: F32 in the same order, no fused multiply-add in
//            a scale of scales, one rounding to the stated dtype, one to that of `to`
// Limits     an octet is read in one load where K, blocks and groups are multiples of 8; other shapes
//            are read byte by byte
#include <cuda_fp16.h>

#include "cuda/cuda_backend.h"
#include "cuda/dequantise.cuh"
#include "cuda/quantised_kernels.h"

namespace lk {
namespace {

using u32 = std::uint32_t;

// E4M3 to F32: the seven bits after the sign are a float's but for the bias; subnormals come out right.
__device__ __forceinline__ float from_e4m3(u32 code) {
  const float x = __uint_as_float((code & 0x7fu) << 20) * 0x1p120f;
  return code & 0x80u ? -x : x;
}

// Nf4 and Fp4.
template <bool kNested, bool kWhole>
struct CodebookDecoder {
  static constexpr bool kTable = true;
  float table[16];
  const std::uint8_t* codes;
  const void* scales;
  const float *outer, *map;
  float offset;
  i64 cols;
  int block_shift;  // blocks are powers of two
  RoundedTo rounded;

  __device__ __forceinline__ float scale(i64 i) const {
    if constexpr (kNested) {
      const float inner = __ldg(map + __ldg(static_cast<const std::uint8_t*>(scales) + i));
      return __fadd_rn(__fmul_rn(inner, __ldg(outer + i / kNestedBlock)), offset);
    }
    return __ldg(static_cast<const float*>(scales) + i);
  }
  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float* lut,
                                             float (&v)[kOctet]) const {
    const i64 first = static_cast<i64>(row) * cols + static_cast<i64>(octet) * kOctet;
    if constexpr (kWhole) {
      const u32 word = __ldg(reinterpret_cast<const u32*>(codes + first / 2));
      const float s = scale(first >> block_shift);
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        const int shift = j / 2 * 8 + (j % 2 ? 0 : 4);  // the even element in the high nibble
        v[j] = lut[word >> shift & 15u] * s;
      }
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const i64 at = first + j;
        v[j] = 0;
        if (static_cast<i64>(octet) * kOctet + j >= cols) continue;
        const u32 byte = __ldg(codes + at / 2);
        v[j] = lut[at % 2 ? byte & 15u : byte >> 4] * scale(at >> block_shift);
      }
    }
    round_to(rounded, v);
  }
};

template <bool kWhole>
struct Fp8Decoder {
  static constexpr bool kTable = false;
  const std::uint8_t* codes;
  const float* scales;
  i64 cols;
  u32 scale_rows, block, grid;
  RoundedTo rounded;

  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float*,
                                             float (&v)[kOctet]) const {
    const std::uint8_t* at = codes + row * cols + static_cast<i64>(octet) * kOctet;
    const float* s = scales + static_cast<i64>(row / scale_rows) * grid;
    if constexpr (kWhole) {
      const uint2 words = __ldg(reinterpret_cast<const uint2*>(at));
      const float one = __ldg(s + octet * kOctet / block);
#pragma unroll
      for (int j = 0; j < kOctet; ++j)
        v[j] = from_e4m3((j < 4 ? words.x : words.y) >> j % 4 * 8 & 255u) * one;
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const u32 k = octet * kOctet + j;
        v[j] = k < cols ? from_e4m3(__ldg(at + j)) * __ldg(s + k / block) : 0;
      }
    }
    round_to(rounded, v);
  }
};

template <bool kWhole>
struct Int4Decoder {
  static constexpr bool kTable = false;
  const std::uint8_t *codes, *zeros;
  const float* scales;
  i64 cols, row_bytes;
  u32 block, groups;
  RoundedTo rounded;

  __device__ __forceinline__ void operator()(u32 row, u32 octet, const float*,
                                             float (&v)[kOctet]) const {
    const std::uint8_t* at = codes + row * row_bytes + static_cast<i64>(octet) * (kOctet / 2);
    const i64 g0 = static_cast<i64>(row) * groups;
    if constexpr (kWhole) {
      const u32 word = __ldg(reinterpret_cast<const u32*>(at));
      const i64 g = g0 + octet * kOctet / block;
      const int zero = __ldg(zeros + g);
      const float s = __ldg(scales + g);
#pragma unroll
      for (int j = 0; j < kOctet; ++j)
        v[j] = static_cast<float>(static_cast<int>(word >> 4 * j & 15u) - zero) * s;
    } else {
      for (int j = 0; j < kOctet; ++j) {
        const u32 k = octet * kOctet + j;
        v[j] = 0;
        if (k >= cols) continue;
        const u32 byte = __ldg(at + j / 2);
        const int code = static_cast<int>(j % 2 ? byte >> 4 : byte & 15u);
        const i64 g = g0 + k / block;
        v[j] = static_cast<float>(code - __ldg(zeros + g)) * __ldg(scales + g);
      }
    }
    round_to(rounded, v);
  }
};

template <class T>
const T* plane(const QuantisedMatrix& q, Plane p) {
  return q[p] ? static_cast<const T*>(q[p].raw()) : nullptr;
}

void codebook(const QuantisedMatrix& q, const Tensor& to, const int* ids, cudaStream_t stream) {
  const i64 K = to.cols(), block = q.format.block;
  check((block & (block - 1)) == 0, "dequantise: blocks of ", block);
  int shift = 0;
  while ((i64{1} << shift) < block) ++shift;
  auto run = [&]<bool kNested, bool kWhole>() {
    CodebookDecoder<kNested, kWhole> decoder{.table = {},
                                             .codes = plane<std::uint8_t>(q, Plane::Codes),
                                             .scales = plane<void>(q, Plane::Scales),
                                             .outer = plane<float>(q, Plane::Outer),
                                             .map = plane<float>(q, Plane::Map),
                                             .offset = q.offset,
                                             .cols = K,
                                             .block_shift = shift,
                                             .rounded = q.format.rounded};
    const std::array<float, 16>& values = lk::codebook(q.format.encoding);
    std::copy(values.begin(), values.end(), decoder.table);
    launch_dequantise("dequantise_codebook", decoder, to, ids, stream);
  };
  const bool whole = K % kOctet == 0 && block % kOctet == 0;
  if (q.format.nested)
    whole ? run.template operator()<true, true>() : run.template operator()<true, false>();
  else
    whole ? run.template operator()<false, true>() : run.template operator()<false, false>();
}

void fp8(const QuantisedMatrix& q, const Tensor& to, const int* ids, cudaStream_t stream) {
  const i64 K = to.cols(), block = q.format.block;
  auto run = [&]<bool kWhole>() {
    launch_dequantise(
        "dequantise_fp8",
        Fp8Decoder<kWhole>{plane<std::uint8_t>(q, Plane::Codes), plane<float>(q, Plane::Scales), K,
                           static_cast<u32>(q.format.scale_rows), static_cast<u32>(block),
                           static_cast<u32>(ceil_div(K, block)), q.format.rounded},
        to, ids, stream);
  };
  K % kOctet == 0 && (block % kOctet == 0 || block >= K) ? run.template operator()<true>()
                                                         : run.template operator()<false>();
}

void int4(const QuantisedMatrix& q, const Tensor& to, const int* ids, cudaStream_t stream) {
  const i64 K = to.cols(), block = q.format.block;
  auto run = [&]<bool kWhole>() {
    launch_dequantise(
        "dequantise_int4",
        Int4Decoder<kWhole>{plane<std::uint8_t>(q, Plane::Codes),
                            plane<std::uint8_t>(q, Plane::Zeros), plane<float>(q, Plane::Scales), K,
                            ceil_div(K, 2), static_cast<u32>(block),
                            static_cast<u32>(ceil_div(K, block)), q.format.rounded},
        to, ids, stream);
  };
  K % kOctet == 0 && (block % kOctet == 0 || block >= K) ? run.template operator()<true>()
                                                         : run.template operator()<false>();
}

}  // namespace

void CudaQuantisedKernels::dequantise(const Tensor& to, const Weight& w) {
  to.expect(w.shape(), "dequantise: to (N,K)");
  rows(to, w, nullptr);
}

void CudaQuantisedKernels::rows(const Tensor& to, const Weight& w, const int* ids) {
  check(w.has_values(), w.name(), ": is packed for inference");
  const QuantisedMatrix& q = *w.quantised();
  cudaStream_t stream = backend_.stream();
  switch (q.format.encoding) {
    case Encoding::Blocks:
      return dequantise_blocks(*q.format.blocks, plane<std::uint8_t>(q, Plane::Codes), to, ids,
                               stream);
    case Encoding::Nf4:
    case Encoding::Fp4:
      return codebook(q, to, ids, stream);
    case Encoding::Fp8:
      return fp8(q, to, ids, stream);
    case Encoding::Int4:
      return int4(q, to, ids, stream);
  }
}

}  // namespace lk
