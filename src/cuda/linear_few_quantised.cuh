// Quantised projections of a few rows in BF16: decoding. Codes are read where they lie and made numbers
// in registers, so a step reads a base's stored bytes, once. The simple way, for all formats and shapes;
// integer_row.cuh and linear_row.cuh are the fast ones, for up to four long rows.
//
// Shapes     y (M,N) = addend (M,N) + x (M,K) wᵀ, w (N,K) quantised, M <= 32, for up to three w of one
//            format; K a multiple of 8
// Plan       a block: 16 rows of w; its sixteen warps take turns along K, 64 columns each. A lane
//            decodes 8 neighbouring columns of two rows, which serve as tensor-core operands as they
//            are (linear_few_bf16.cu has the same layout). Many warps on a multiprocessor hide the loads.
// Bytes      w's stored bytes once; x (N / 16) times from L1/L2; y once
// Numbers    values are rounded to BF16, as dequantised matrices are; F32 sums: a warp's columns in
//            order, then the warps in order, then the addend. The order depends on K alone.
// Limits     8 to 33 % of a copy's rate on an H200, by format; a third fewer instructions did not help
#pragma once

#include "cuda/dequantise.cuh"
#include "cuda/linear_few.cuh"
#include "cuda/mma.cuh"

namespace lk {

constexpr int kCodeThreads = 512;

template <class Decoder>
struct QuantisedPart {
  Decoder decode;
  Matrix<__nv_bfloat16> y;
  Matrix<const __nv_bfloat16> addend;  // addend.data may be null: zero
  int begin, end;                      // its rows, counted over all parts
};
template <class Decoder>
struct QuantisedParts {
  QuantisedPart<Decoder> part[kMostFewParts];
  int n;
};

// NT: number of groups of 8 rows of x.
template <class Decoder, int NT>
__global__ void __launch_bounds__(kCodeThreads, NT == 1 ? 2 : 1)
    linear_few_quantised_kernel(const __grid_constant__ QuantisedParts<Decoder> parts,
                                Matrix<const __nv_bfloat16> x, int n_x, int k) {
  constexpr int kWarps = kCodeThreads / 32, kColumns = 64;
  __shared__ float partial[kWarps * 8 * NT * kFewRows], table[16];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int block_row = static_cast<int>(blockIdx.x) * kFewRows;
  int chosen = 0;
  for (int i = 1; i < parts.n; ++i)
    if (block_row >= parts.part[i].begin) chosen = i;
  const QuantisedPart<Decoder>& p = parts.part[chosen];
  const int row0 = block_row - p.begin, n = p.end - p.begin;
  if constexpr (Decoder::kTable) {
    if (threadIdx.x < 16) table[threadIdx.x] = p.decode.table[threadIdx.x];
    __syncthreads();
  }
  const auto low_row = static_cast<std::uint32_t>(min(row0 + g, n - 1)),
             high_row = static_cast<std::uint32_t>(min(row0 + g + 8, n - 1));

  float low[2][kOctet], high[2][kOctet], sum[NT][4] = {};
  // Behind the last column it decodes that one again: x is 0 there.
  const auto decode = [&](int first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int col = min(first + 32 * half + t * kOctet, k - kOctet);
      p.decode(low_row, static_cast<std::uint32_t>(col / kOctet), table, low[half]);
      p.decode(high_row, static_cast<std::uint32_t>(col / kOctet), table, high[half]);
    }
  };
  decode(warp * kColumns);
  wait_for_previous();  // Note [Early launches]
#pragma unroll 1
  for (int first = warp * kColumns; first < k; first += kWarps * kColumns) {
    if (first != warp * kColumns) decode(first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int col = first + 32 * half + t * kOctet;
      std::uint32_t a[4], b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[j] = pack_bf16(low[half][2 * j], low[half][2 * j + 1]);
        b[j] = pack_bf16(high[half][2 * j], high[half][2 * j + 1]);
      }
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        const uint4 v = g + 8 * nt < n_x && col < k
                            ? *reinterpret_cast<const uint4*>(x.at(g + 8 * nt, col))
                            : uint4{};
        mma(sum[nt], Fragment4{{a[0], b[0], a[1], b[1]}}, v.x, v.y);
        mma(sum[nt], Fragment4{{a[2], b[2], a[3], b[3]}}, v.z, v.w);
      }
    }
  }

  store_few<NT, kWarps>(p, partial, sum, row0, n, n_x);
}

// `parts` have one format, whose decoder is Decoder.
template <class Decoder>
void launch_linear_few_quantised(const Tensor& x, std::span<const LinearPart> parts,
                                 cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  QuantisedParts<Decoder> few{.part = {}, .n = static_cast<int>(parts.size())};
  int rows = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    QuantisedPart<Decoder>& part = few.part[i];
    const int n = static_cast<int>(parts[i].w->shape()[0]);
    part = {Decoder::of(*parts[i].w->quantised(), K), matrix<bf16>(parts[i].y), {}, rows, rows + n};
    if (parts[i].addend) part.addend = const_matrix<bf16>(parts[i].addend);
    rows += ceil_div(n, kFewRows) * kFewRows;
  }
  const auto go = [&]<int NT>() {
    launch_early("linear_few_quantised", linear_few_quantised_kernel<Decoder, NT>,
                 grid_of(rows / kFewRows), dim3(kCodeThreads), 0, stream, few,
                 const_matrix<bf16>(x), static_cast<int>(M), static_cast<int>(K));
  };
  M <= 8 ? go.template operator()<1>() : go.template operator()<4>();
}

}  // namespace lk
