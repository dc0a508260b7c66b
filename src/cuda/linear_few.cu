// Frozen projections of at most 8 rows in F32: decoding. BF16 has a kernel of its own,
// linear_few_bf16.cu.
//
// Shapes     y (M,N) = addend (M,N) + x (M,K) wᵀ, w (N,K), M <= 8, for up to three w; rows 16-byte
//            aligned
// Plan       a warp: two rows of w, streamed past L1 in 16-byte loads, four of each row in flight
//            per lane (4 KiB a warp); x comes from L1, once per pair of rows
// Bytes      w once; x (N / 16) times from L1/L2; y once
// Numbers    each lane sums its columns in order, then a butterfly over the warp, then the addend.
//            The order depends on K alone: a row has the same bits for every M.
#include "cuda/linear_few.h"

#include "cuda/linear_few.cuh"
#include "cuda/reduce.cuh"
#include "cuda/scratch.h"

namespace lk {
namespace {

constexpr int kMost = 8, kThreads = 256, kRows = 2, kUnroll = 4;

template <int M>
__global__ void __launch_bounds__(kThreads)
    linear_few_kernel(FewParts<float> parts, Matrix<const float> x, int k) {
  constexpr int N = 4, kStep = 32 * N;
  int lane = threadIdx.x % 32;
  i64 row0 = (static_cast<i64>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kRows;
  const FewPart<float> p = parts.of(row0);
  if (row0 >= p.end) return;  // whole warps return
  row0 -= p.begin;
  const i64 n = p.end - p.begin;
  const float* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = p.w.at(min(row0 + r, n - 1), 0);
  float4 raw[kUnroll][kRows];
  auto load = [&](int col0) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (col0 + u * kStep < k)
          raw[u][r] = __ldcs(reinterpret_cast<const float4*>(rows[r] + col0 + u * kStep));
  };
  load(lane * N);
  wait_for_previous();  // Note [Early launches]
  float sum[kRows][M] = {};
  for (int col0 = lane * N; col0 < k; col0 += kStep * kUnroll) {
    if (col0 != lane * N) load(col0);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      int col = col0 + u * kStep;
      if (col >= k) break;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        float v[N];
        load_pack<N>(x.at(m, col), v);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float4 w = raw[u][r];
          sum[r][m] = fmaf(w.x, v[0], sum[r][m]);
          sum[r][m] = fmaf(w.y, v[1], sum[r][m]);
          sum[r][m] = fmaf(w.z, v[2], sum[r][m]);
          sum[r][m] = fmaf(w.w, v[3], sum[r][m]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float total = warp_sum(sum[r][m]);
      if (lane != 0 || row0 + r >= n) continue;
      if (p.addend.data) total += *p.addend.at(m, row0 + r);
      *p.y.at(m, row0 + r) = total;
    }
}

using Kernel = void (*)(FewParts<float>, Matrix<const float>, int);
constexpr Kernel kKernels[kMost] = {
    linear_few_kernel<1>, linear_few_kernel<2>, linear_few_kernel<3>, linear_few_kernel<4>,
    linear_few_kernel<5>, linear_few_kernel<6>, linear_few_kernel<7>, linear_few_kernel<8>};

}  // namespace

bool linear_few_rows(const Tensor& x, const MadeInput* input, std::span<const LinearPart> parts,
                     cudaStream_t stream) {
  if (x.dtype() == DType::BF16) return linear_few_rows_bf16(x, input, parts, stream);
  const i64 M = x.rows(), K = x.cols();
  FewParts<float> few;
  if (x.dtype() != DType::F32 || input || M < 1 || M > kMost || K < 1 || K > INT32_MAX ||
      !few_parts<float>(x, parts, kRows, few))
    return false;
  launch_early("linear_few", kKernels[M - 1], grid_of(ceil_div(few.rows, kThreads / 32 * kRows)),
               dim3(kThreads), 0, stream, few, const_matrix<float>(x), static_cast<int>(K));
  return true;
}

namespace {

// What linear_row.cuh serves. Shorter rows leave most of its warps without a chunk.
constexpr i64 kMostByRuns = 4, kFewestColumnsByRuns = 1024;

// Whether one decoder serves both.
bool same_decoder(const QuantisedFormat& a, const QuantisedFormat& b) {
  return a.encoding == b.encoding && a.blocks == b.blocks && a.nested == b.nested;
}

}  // namespace

bool linear_few_quantised(const Tensor& x, const MadeInput* input,
                          std::span<const LinearPart> parts, cudaStream_t stream) {
  const Tensor& made = input ? input->made : x;
  if (parts.empty() || parts.size() > kMostFewParts || x.dtype() != DType::BF16 ||
      !packable(8, x.cols(), x, made))
    return false;
  for (const LinearPart& part : parts)
    if (!takes_codes(x.rows(), *part.w) || part.y.dtype() != DType::BF16 ||
        (part.addend && part.addend.dtype() != DType::BF16))
      return false;
  const bool by_runs =
      x.rows() <= kMostByRuns && x.cols() >= kFewestColumnsByRuns && x.cols() % 32 == 0;
  RowInput how;
  if (!row_input(x, input, how)) return false;
  // The first kernel makes the input, or one before it; the others read what it leaves.
  bool is_made = !input;
  while (!parts.empty()) {
    const QuantisedFormat& format = parts[0].w->quantised()->format;
    std::size_t n = 1;
    while (n < parts.size() && same_decoder(format, parts[n].w->quantised()->format)) ++n;
    const auto run = parts.first(n);
    const bool blocks = format.encoding == Encoding::Blocks;
    parts = parts.subspan(n);
    const bool makes_it = !is_made && by_runs && blocks && linear_row_blocks(x, input, run, stream);
    if (!is_made && !makes_it) make_few_rows(x, how, stream);
    is_made = true;
    if (makes_it || (by_runs && (blocks ? linear_row_blocks(made, nullptr, run, stream)
                                        : linear_row_codes(made, run, stream))))
      continue;
    blocks ? linear_few_blocks(made, run, stream) : linear_few_codes(made, run, stream);
  }
  return true;
}

}  // namespace lk
