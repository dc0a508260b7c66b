// Projections of one to four rows in BF16 with codes that have scales beside them (NF4, FP4, FP8, 4-bit integers):
// decoding, one token a sequence. Codes are read where they lie and become BF16 operands of tensor cores with few
// instructions. ggml's blocks, which are integers, have integer_row.cuh.
//
// Shapes     y (M,N) = addend (M,N) + x (M,K) wᵀ, w (N,K) quantised, M <= 4, for up to three w of one
//            format; K a multiple of 32
// Plan       a tile: 16 rows of w; its 4 to 16 warps take turns along K, 256 columns each: a chunk of
//            eight runs of 32. A block: one to four tiles. A warp copies its chunks into shared memory of
//            its own, one ahead of the one that it multiplies, the first before the kernel's input is
//            there; no warp waits for another.
// Scales     Every run has scales of its own, which must not meet before they are applied. So the eight
//            columns of the product's right operand, of which a single row of x would fill one, hold that
//            row's eight runs: column n is x in run n and zero elsewhere. The product then has the sums
//            of 16 rows and 8 runs apart, four in each lane, which multiplies each by its scale. What is
//            constant in a run, the codes' offset and a minimum, is a product with the sum of x over the
//            run, for which one more operand is all ones.
// Bytes      w's stored bytes once; x (N / 16) times from L1/L2; y once
// Numbers    codes are exact in BF16 (the values of a codebook are rounded to it); scales apply in F32, to
//            F32 sums. A warp's chunks in order, then four lanes, then the warps in order, then the addend:
//            the order depends on the parts' shapes alone, so a row has the same bits for every M <= 4.
// Limits     37 to 69 % of a copy's rate for 11008 x 4096 on an H200, 12 us of which 3 pass before the first
//            codes arrive; ALUs, which take two cycles for an instruction, are busy half of the time
#pragma once

#include "cuda/mma.cuh"
#include "cuda/operands.cuh"
#include "cuda/row_parts.cuh"

namespace lk {

constexpr int kMostRowThreads = 512;

// Format: how codes become operands; `static constexpr`
//   u32 kBytes       of a chunk's codes in a row
//   bool kInterleaved  column i of its first four goes with i of its last four; else neighbours
//   int kWords       words that a lane reads of a run in one place
//   int kBias        what is added to the codes
//   bool kSums       whether kBias, or the b of scales(), may be other than 0
//   bool kLut        whether a table makes a byte's two nibbles an operand
//   struct Ahead     what is read of the scales before the chunk's codes are there
// and
//   Ahead ahead(low_row, high_row, run, runs)  of runs `run` and `run` + 1 of two of w's rows
//   operands(chunk, run, t, lut, bank, w)      w: the lane's columns 8t to 8t+7; chunk: the codes of a row in
//                                              shared memory
//   scales(ahead, h, f)                        f[i]: of row h of the two, run 2t + i: {a, b} where a value is
//                                              a (code - kBias) + b
//   u32 pair_of(byte)                          of kLut

template <class Format>
constexpr int kLutBytes = Format::kLut ? 256 * operands::kCopiesOfEntry * 4 : 0;
template <class Format>
constexpr int row_shared(int warps) {
  return kLutBytes<Format> + warps * 2 * RowStage<Format>::kBytes;
}

// The lane's eight columns of a run of x, as operands hold them.
template <class Format>
__device__ __forceinline__ uint4 operands_of_x(const __nv_bfloat16* run, int t) {
  const uint4 v = run_of_x<false>(run, t);
  if constexpr (!Format::kInterleaved) return v;
  return {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
          __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
}

// Two BF16 products. Where one factor is 0 or 1 this chooses, on pipes that choosing leaves idle.
__device__ __forceinline__ std::uint32_t times(std::uint32_t a, std::uint32_t b) {
  std::uint32_t y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(y) : "r"(a), "r"(b), "r"(0x80008000u));
  return y;
}

// n_warps: of a tile of 16 rows.
template <class Format, int M>
__global__ void __launch_bounds__(kMostRowThreads, M == 1 ? 2 : 1)
    linear_row_kernel(const __grid_constant__ RowParts<Format> parts, Matrix<const __nv_bfloat16> x,
                      int n_x, int k, int n_warps) {
  using u32 = std::uint32_t;
  using Stage = RowStage<Format>;
  static_assert(!Stage::kShifted);
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int tile = threadIdx.x / 32 / n_warps, warp = threadIdx.x / 32 % n_warps;
  const int block_row =
      (static_cast<int>(blockIdx.x * (blockDim.x / 32) / n_warps) + tile) * kFewRows;
  const RowPart<Format>& p = parts.of(block_row / kFewRows);
  const int row0 = block_row - p.begin, n = p.end - p.begin;
  const u32 row_bytes = p.row_bytes;
  const auto row_of = [&](int r) {  // a block's last tiles may lie behind the last part
    return static_cast<u32>(min(row0 + r, n - 1));
  };

  unsigned char* ring = shared + kLutBytes<Format> + threadIdx.x / 32 * (2 * Stage::kBytes);
  const unsigned char* codes = p.codes;
  const u32 last = (static_cast<u32>(n) * row_bytes - 1) & ~15u;
  const StageCopy<Format> copy_stage(
      [&](int row) { return row_of(min(row, kFewRows - 1)) * row_bytes; });
  const auto copy = [&](int chunk, int stage) {
    copy_stage(shared_address(ring) + stage * Stage::kBytes, codes,
               static_cast<u32>(chunk) * Format::kBytes, last);
  };
  const int n_chunks = (k + kChunk - 1) / kChunk, runs = k / kRun;
  if (warp < n_chunks) copy(warp, 0);
  copy_async_commit();
  const u32 low_row = row_of(g), high_row = row_of(g + 8);
  const auto ahead_of = [&](int chunk) {
    return p.format.ahead(low_row, high_row, min(chunk * kRuns + 2 * t, runs - 1), runs);
  };
  typename Format::Ahead next = ahead_of(min(warp, n_chunks - 1));
  if constexpr (Format::kLut) {
    operands::fill_table(shared, p.format);
    __syncthreads();
  }
  const u32 bank = operands::bank_of(lane);
  u32 mine[kRuns];  // 1 twice in BF16 in the lanes whose column a run is, else 0
#pragma unroll
  for (int run = 0; run < kRuns; ++run) mine[run] = run == g ? 0x3f803f80u : 0u;
  wait_for_previous();  // Note [Early launches]

  float sum[M][2] = {};
  int stage = 0;
#pragma unroll 1
  for (int chunk = warp; chunk < n_chunks; chunk += n_warps) {
    const bool inside = chunk * kRuns + g < runs;
    uint4 v[M];
#pragma unroll
    for (int m = 0; m < M; ++m)
      v[m] = inside && m < n_x ? operands_of_x<Format>(x.at(m, chunk * kChunk + g * kRun), t)
                               : uint4{};
    const typename Format::Ahead ahead = next;
    next = ahead_of(min(chunk + n_warps, n_chunks - 1));
    copy_async_wait();
    __syncwarp();  // the stage has arrived, and nobody reads the other one any more
    if (chunk + n_warps < n_chunks) copy(chunk + n_warps, stage ^ 1);
    copy_async_commit();

    const unsigned char *low = ring + stage * Stage::kBytes + g * Stage::kPitch,
                        *high = low + 8 * Stage::kPitch;
    float c[M][4] = {}, ones[M][4] = {};
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      u32 l[4], h[4];
      Format::operands(low, run, t, shared, bank, l);
      Format::operands(high, run, t, shared, bank, h);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const uint4 u{times(v[m].x, mine[run]), times(v[m].y, mine[run]), times(v[m].z, mine[run]),
                      times(v[m].w, mine[run])};
        mma(c[m], Fragment4{{l[0], h[0], l[1], h[1]}}, u.x, u.y);
        mma(c[m], Fragment4{{l[2], h[2], l[3], h[3]}}, u.z, u.w);
      }
    }
    if constexpr (Format::kSums) {
      constexpr u32 kOnes = 0x3f803f80u;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(ones[m], Fragment4{{kOnes, kOnes, kOnes, kOnes}}, v[m].x, v[m].y);
        mma(ones[m], Fragment4{{kOnes, kOnes, kOnes, kOnes}}, v[m].z, v[m].w);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float2 f[2];
      Format::scales(ahead, h, f);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool counts =
            chunk * kRuns + 2 * t + i < runs;  // scales behind a row may be anything
        const float scale = counts ? f[i].x : 0.0f,
                    offset =
                        counts ? fmaf(f[i].x, -static_cast<float>(Format::kBias), f[i].y) : 0.0f;
#pragma unroll
        for (int m = 0; m < M; ++m) {
          sum[m][h] = fmaf(scale, c[m][2 * h + i], sum[m][h]);
          if constexpr (Format::kSums) sum[m][h] = fmaf(offset, ones[m][i], sum[m][h]);
        }
      }
    }
    stage ^= 1;
  }

  // The warps' sums are exchanged in the memory of the tile's first stages.
  copy_async_wait();
  const auto wait_for_tile = [&] {
    asm volatile("bar.sync %0, %1;\n" ::"r"(tile + 1), "r"(n_warps * 32) : "memory");
  };
  wait_for_tile();
  float* partial =
      reinterpret_cast<float*>(shared + kLutBytes<Format> + tile * n_warps * (2 * Stage::kBytes));
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[m][h];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      if (t == 0) partial[(warp * M + m) * kFewRows + g + 8 * h] = total;
    }
  wait_for_tile();
  const int m = (warp * 32 + lane) / kFewRows, r = lane % kFewRows;
  if (m >= min(M, n_x) || row0 + r >= n) return;
  float total = 0.0f;
  for (int w = 0; w < n_warps; ++w) total += partial[(w * M + m) * kFewRows + r];
  if (p.addend.data) total += to_float(*p.addend.at(m, row0 + r));
  *p.y.at(m, row0 + r) = from_float<__nv_bfloat16>(total);
}

// `parts` have one format, which Format reads; false if their rows are not, with nothing done.
template <class Format>
bool launch_linear_row(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  RowParts<Format> all;
  if (!row_parts(x, parts, all)) return false;
  // The fewer tiles, the more warps each: a few thousand fill a GPU. Not more than two blocks' worth of shared
  // memory allows, nor than there are chunks.
  const int tiles = all.tiles, chunks = static_cast<int>(ceil_div(K, kChunk));
  constexpr int kMostWarps = row_shared<Format>(16) <= 112 * 1024 ? 16 : 8;
  const int most = has_shared(row_shared<Format>(kMostWarps)) ? kMostWarps : 8;
  int n_warps = tiles > 700 ? 4 : tiles > 320 ? 8 : most;
  while (n_warps > 4 && n_warps > chunks) n_warps /= 2;
  const int warps = Format::kLut ? most : std::max(n_warps, 8);
  const auto go = [&]<int kM>() {
    launch_early("linear_row", linear_row_kernel<Format, kM>,
                 grid_of(ceil_div(tiles, warps / n_warps)), dim3(warps * 32),
                 row_shared<Format>(warps), stream, all, const_matrix<bf16>(x), static_cast<int>(M),
                 static_cast<int>(K), n_warps);
  };
  M == 1   ? go.template operator()<1>()
  : M == 2 ? go.template operator()<2>()
           : go.template operator()<4>();
  return true;
}

}  // namespace lk
