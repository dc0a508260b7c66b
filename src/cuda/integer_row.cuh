// Projections of one to four rows in BF16 with ggml's blocks, whose codes are integers: decoding, one token a
// sequence. Codes are read where they lie and multiplied as bytes, so a step takes what its bytes take.
//
// Shapes     y (M,N) = addend (M,N) + n (M,K) wᵀ, w (N,K) in blocks, M <= 4, for up to three w of one type;
//            n is x, rmsnorm(x) or act(gate) * x; K a multiple of 32
// Plan       All blocks of the grid are in place at once and share the tiles (16 rows of w) evenly, up to 8 in
//            a round. A block's warps take turns along K, 256 columns each: a chunk of eight runs of 32. A
//            warp makes integers of its part of x once and multiplies all its tiles of the round with it. Two
//            warps of neighbouring chunks copy the codes of both into shared memory of theirs, two turns ahead,
//            the first before the kernel's input is there: the longer a row's bytes lie together, the fewer
//            lines and pieces are asked for, and what a multiprocessor can ask for is what is short. All
//            warps wait for each other at a round's end, to add their sums.
// Integers   a run of x is a scale, its largest magnitude / 32512, times integers of 16 bits, v = 256 high + low
//            with both in [-128, 127]: two of the eight columns of the product's right operand. The others hold
//            three other runs of the row, or rows: column 2 (M r + m) + i has half i of row m in the run r of a
//            group of 4 / M, and is zero in the group's other runs. So runs, each with scales of its own, keep
//            sums of their own, in one accumulator.
// Input      a warp makes n where it reads x; the gain of its first chunk comes before the codes. A norm's factor is a sum over all of x, which would have all warps
//            wait: x times the gain is multiplied, and the factor applies to the sums. The last block, which
//            has the fewest tiles, leaves n in memory
// Scales     applied in F32: a value is a (code - bias) + b, so a sum is a (codes times v) + (b - a bias) (sum of
//            v), where the sum of v is known from x
// Bytes      w's stored bytes once; x (N / 16) / (tiles of a block) times from L1/L2; y once
// Numbers    sums of a run are exact integers, rounded to F32 once, of n, or x times the gain, rounded to 2^-16 of
//            the run's largest. Less than 1e-33 counts as zero; what is not finite stays so, and over 8e34 may
//            become so. A lane's runs i and i + 4 of a chunk, then runs 0 + 1 and 2 + 3, a warp's chunks in
//            order, then the warps in order, then the addend: an order of the parts' shapes and the GPU, so a
//            row has the same bits for every M <= 4.
// Limits     alone on an H200 30 to 73 % of a copy's rate for 11008 x 4096, before codes were copied by pairs; about
//            6 us of a launch are fixed: its start, x, which is read and made integers of, and the sums
#pragma once

#include <vector>

#include "cuda/integer_operands.cuh"

namespace lk {

constexpr int kRoundTiles = 8;
constexpr int kMostNormedChunks = 64;  // longer rows are normed by a kernel of its own

// Shared memory of a block: of each pair of warps two stages, of each warp its part of x and the sums of a round's rows.
template <class Format, int M>
constexpr int kIntegerBytes = Format::kWarps*(RowStage<Format, 2>::kBytes +
                                              static_cast<int>(sizeof(IntegerRows<Format, M>)) +
                                              kRoundTiles * M * kFewRows * 4) +
                              M* kMostNormedChunks * 4;

// Element i of the round that begins with a tile.
template <class Format>
struct Element {
  int m, tile, r, row;  // row of x; tile of the round; row of the tile, of the part
  const RowPart<Format>* part;

  __device__ __forceinline__ Element(const RowParts<Format>& parts, int begin, int i)
      : m(i / (kRoundTiles * kFewRows)),
        tile(i / kFewRows % kRoundTiles),
        r(i % kFewRows),
        part(&parts.of(begin + tile)) {
    row = (begin + tile) * kFewRows + r - part->begin;
  }
  __device__ __forceinline__ bool counts(int behind, int n_x) const {
    return m < n_x && tile < behind && row < part->end - part->begin;
  }
};

// 1 / sqrt(mean of squares + eps) of row m of x. squares: (M, kMostNormedChunks), of chunks.
__device__ __forceinline__ float norm_factor(const float* squares, int m, int k, float eps) {
  float sum = 0.0f;
#pragma unroll 8
  for (int chunk = 0; chunk * kChunk < k; ++chunk) sum += squares[m * kMostNormedChunks + chunk];
  return 1.0f / sqrtf(sum / static_cast<float>(k) + eps);
}

// A tile has 2^log_warps warps, a block `share` tiles, and the first `more` blocks one more.
template <class Format, int M>
__global__ void __launch_bounds__(Format::kWarps * 32, M == 1 ? Format::kBlocks : 1)
    integer_row_kernel(const __grid_constant__ RowParts<Format> parts,
                       Matrix<const __nv_bfloat16> x, int n_x, RowInput input, int k, int log_warps,
                       int share, int more) {
  using u32 = std::uint32_t;
  using Stage = RowStage<Format, 2>;
  using X = IntegerOperands<Format, M>;
  constexpr int kWarps = Format::kWarps, kThreads = kWarps * 32;
  constexpr int kHalves = X::kHalves;
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int n_warps = 1 << log_warps, n_places = kWarps >> log_warps;
  const int place = threadIdx.x / 32 >> log_warps, warp = threadIdx.x / 32 & (n_warps - 1);
  const int block = blockIdx.x, first = block * share + min(block, more),
            end = first + share + (block < more ? 1 : 0);
  const int n_chunks = (k + kChunk - 1) / kChunk, runs = k / kRun;
  const u32 row_bytes = parts.part[0].row_bytes;

  // What is copied next, by both warps of a pair.
  int round = first, next_chunk = warp & ~1, next_tile = first + place;
  unsigned char* const ring = shared + threadIdx.x / 64 * (2 * Stage::kBytes);
  auto* const all_rows = reinterpret_cast<IntegerRows<Format, M>*>(shared + kWarps * Stage::kBytes);
  auto& rows = all_rows[threadIdx.x / 32];
  float* const sums = reinterpret_cast<float*>(all_rows + kWarps);
  float* const squares = sums + kWarps * (kRoundTiles * kFewRows * M);
  const StageCopy<Format, 2> copy([&](int row) { return static_cast<u32>(row) * row_bytes; });
  const auto copy_next = [&](int stage) {
    if (next_tile < end) {
      const RowPart<Format>& p = parts.of(next_tile);
      const u32 last = (static_cast<u32>(p.end - p.begin) * row_bytes - 1) & ~15u;
      const u32 to = shared_address(ring) + stage * Stage::kBytes,
                skipped = static_cast<u32>(next_tile * kFewRows - p.begin) * row_bytes +
                          static_cast<u32>(next_chunk) * Format::kBytes;
      copy(to, p.codes, skipped, last);
      next_tile += n_places;
      if (next_tile >= min(round + kRoundTiles, end)) {
        next_chunk += n_warps;
        if (next_chunk >= n_chunks) next_chunk = warp & ~1, round += kRoundTiles;
        next_tile = round + place;
      }
    }
    copy_async_commit();
  };
  // The norm's gain is asked for first: behind the codes it would be the last to arrive.
  if constexpr (IntegerRows<Format, M>::kAsksGain) {
    if (input.gain) rows.ask_gain(input.gain, warp, runs);
    copy_async_commit();
  }
  if (input.gain && lane < kChunk * 2 / 128)
    for (int chunk = warp; chunk < n_chunks; chunk += n_warps)
      if (const int column = chunk * kChunk + lane * 64; column < k)
        prefetch_l2(input.gain + column);
  const auto wait_for_pair = [] {
    asm volatile("bar.sync %0, 64;\n" ::"r"(1 + threadIdx.x / 64) : "memory");
  };
  copy_next(0);
  copy_next(1);
  wait_for_previous();  // Note [Early launches]

  const bool keeps = blockIdx.x == gridDim.x - 1;  // it has the fewest tiles
  int stage = 0;
  for (int begin = first; begin < end; begin += kRoundTiles) {
    const int behind = min(begin + kRoundTiles, end);
    // The thread's elements of y in this round.
    constexpr int kMine = (kRoundTiles * kFewRows * M + kThreads - 1) / kThreads;
    float addend[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const Element<Format> e(parts, begin, threadIdx.x + i * kThreads);
      addend[i] = e.counts(behind - begin, n_x) && e.part->addend.data
                      ? to_float(*e.part->addend.at(e.m, e.row))
                      : 0.0f;
    }
    // The last chunk's neighbour may not be there: its warp copies and waits all the same.
    for (int chunk = warp; (chunk & ~1) < n_chunks; chunk += n_warps) {
      __syncwarp();  // nobody reads the last ones any more
      const bool first_time = begin == first && place == 0;
      const bool asked = IntegerRows<Format, M>::kAsks && chunk != warp && begin + place < behind;
      const bool asked_gain = begin == first && chunk == warp;
      if (asked) copy_async_wait_but<1>();
      if (asked_gain) copy_async_wait_but<2>();
      rows.make(x, n_x, chunk, runs, input, asked, asked_gain, keeps && first_time,
                first_time && chunk < n_chunks ? squares + chunk : nullptr, kMostNormedChunks);
      __syncwarp();
      const X integers(rows);
      float* to = sums + threadIdx.x / 32 * (M * kFewRows) + t % M * kFewRows + g;
#pragma unroll 1
      for (int tile = begin + place; tile < behind; tile += n_places) {
        copy_async_wait_but<1>();
        wait_for_pair();  // the stage has arrived
        if constexpr (IntegerRows<Format, M>::kAsks)
          if (tile == begin + place && chunk + n_warps < n_chunks) {
            rows.ask(x, chunk + n_warps, runs, input);
            copy_async_commit();
          }
        const unsigned char *low = ring + stage * Stage::kBytes + g * Stage::kPitch +
                                   (chunk & 1) * Format::kBytes,
                            *high = low + 8 * Stage::kPitch;
        if constexpr (Stage::kShifted) {
          const u32 skipped =
              static_cast<u32>(tile * kFewRows - parts.of(tile).begin + g) * row_bytes +
              static_cast<u32>(chunk & ~1) * Format::kBytes;
          low += skipped & 15u;
          high += (skipped + 8 * row_bytes) & 15u;
        }
        float sum[2][M] = {};  // of rows g and g + 8: runs i + 4 r, i of the lane's, for each i
#pragma unroll
        for (int j = 0; j < X::kGroups; ++j) {
          int c[kHalves][4] = {};
#pragma unroll
          for (int r = 0; r < X::kSide; ++r) {
            const int run = j * X::kSide + r;
            const u32(&b)[2] = integers.b[run];
            u32 l[2], h[2];
            Format::bytes(low, run, t, l);
            Format::bytes(high, run, t, h);
            if constexpr (kHalves == 1) {
              mma_bytes<Format::kSigned>(c[0], Fragment4{{l[0], h[0], l[1], h[1]}}, b[0], b[1]);
            } else {
              mma_bytes<Format::kSigned>(c[0], l[0], h[0], b[0]);
              mma_bytes<Format::kSigned>(c[1], l[1], h[1], b[1]);
            }
          }
          const int i = j * X::kSide % 4 + t / M, upper = j * X::kSide / 4;
          const bool counts = Format::kWhole || chunk * kRuns + 4 * upper + i < runs;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float2 f[kHalves];
            Format::scales(h ? high : low, upper, i, f);
            float total = 0.0f;
#pragma unroll
            for (int s = 0; s < kHalves; ++s) {
              const float codes =
                  integers.scale[j] * static_cast<float>(256 * c[s][2 * h] + c[s][2 * h + 1]);
              total = s == 0 ? f[s].x * codes : fmaf(f[s].x, codes, total);
              if constexpr (Format::kSums) {
                float offset = f[s].y;
                if constexpr (Format::kBias != 0)
                  offset = fmaf(f[s].x, -static_cast<float>(Format::kBias), offset);
                total = fmaf(offset, integers.sum[j][s], total);
              }
            }
            if (!(counts && chunk < n_chunks)) total = 0.0f;  // scales behind a row may be anything
            sum[h][j % M] = j < M ? total : sum[h][j % M] + total;
          }
        }
        wait_for_pair();  // nobody reads the stage any more
        copy_next(stage);
        stage ^= 1;

        // Lanes of one row of x exchange what they have of its runs; one of them adds to the warp's sums of a row of w.
        const auto add = [&](float* to, float total) { *to = chunk == warp ? total : *to + total; };
        const auto exchanged = [&](int m, int lanes) {
          const bool upper = t & lanes;
          return (upper ? sum[1][m] : sum[0][m]) +
                 __shfl_xor_sync(0xffffffffu, upper ? sum[0][m] : sum[1][m], lanes);
        };
        if constexpr (M == 1) {
          float total = exchanged(0, 1);
          total += __shfl_xor_sync(0xffffffffu, total, 2);
          if (t < 2) add(to + 8 * t, total);
        } else if constexpr (M == 2) {
          add(to + 8 * (t / M), exchanged(0, 2) + exchanged(1, 2));
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h)
            add(to + 8 * h, (sum[h][0] + sum[h][1]) + (sum[h][2] + sum[h][3]));
        }
        to += kWarps * (M * kFewRows);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const Element<Format> e(parts, begin, threadIdx.x + i * kThreads);
      if (!e.counts(behind - begin, n_x)) continue;
      float total = 0.0f;
      for (int w = 0; w < n_warps; ++w)
        total += sums[((e.tile * n_warps + w) * M + e.m) * kFewRows + e.r];
      if (input.gain) total *= norm_factor(squares, e.m, k, input.eps);
      *e.part->y.at(e.m, e.row) = from_float<__nv_bfloat16>(total + addend[i]);
    }
    if (behind < end) __syncthreads();
  }
  if (keeps && input.gain)
    for (int m = 0; m < n_x; ++m) {
      const float factor = norm_factor(squares, m, k, input.eps);
      for (int column = threadIdx.x * 8; column < k; column += kThreads * 8) {
        float v[8], gain[8];
        load_pack<8>(x.at(m, column), v);
        load_pack<8>(input.gain + column, gain);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= factor * gain[i];
        store_pack<8>(input.made.at(m, column), v);
      }
    }
}

// How many of a block's warps share a tile, pairs of them, so that the busiest has the fewest turns: the logarithm.
inline int log_warps_of_tile(int warps, int chunks, i64 tiles_of_block) {
  int best = 1;
  i64 fewest = INT64_MAX;
  for (int log = 4; log >= 1; --log) {
    const int n = 1 << log;
    if (n > warps || n > (chunks + 1) / 2 * 2 || n * kRoundTiles < warps) continue;
    const i64 turns = ceil_div(chunks, n) * ceil_div(tiles_of_block, warps / n);
    if (turns < fewest) best = log, fewest = turns;
  }
  return best;
}

// `parts` have one type, which Format reads; false if these kernels do not suit, with nothing done.
template <class Format>
bool launch_integer_row(const Tensor& x, const MadeInput* input, std::span<const LinearPart> parts,
                        cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  RowParts<Format> all;
  if (!row_parts(x, parts, all) || all.tiles == 0) return false;
  constexpr int kWarps = Format::kWarps;
  static_assert(Format::kBlocks * kIntegerBytes<Format, 1> <= 224 * 1024);
  constexpr int kBytes[] = {0, kIntegerBytes<Format, 1>, kIntegerBytes<Format, 2>,
                            kIntegerBytes<Format, 4>, kIntegerBytes<Format, 4>};
  if (!has_shared(kBytes[1])) return false;
  RowInput how;
  if (!row_input(x, input, how) || (how.gain && ceil_div(K, kChunk) > kMostNormedChunks))
    return false;
  // Where the memory is too small for all rows, in two halves: a row's bits are the same.
  if (!has_shared(kBytes[M])) {
    const auto half = [&](i64 begin, i64 end) {
      std::vector<LinearPart> some;
      for (const LinearPart& part : parts)
        some.push_back({part.y.slice_rows(begin, end), part.w,
                        part.addend ? part.addend.slice_rows(begin, end) : Tensor()});
      MadeInput of_some{};
      if (input) {
        of_some = *input, of_some.made = input->made.slice_rows(begin, end);
        if (input->gate) of_some.gate = input->gate.slice_rows(begin, end);
      }
      check(launch_integer_row<Format>(x.slice_rows(begin, end), input ? &of_some : nullptr, some,
                                       stream),
            "integer_row: half of the rows");
    };
    half(0, M / 2);
    half(M / 2, M);
    return true;
  }
  // As it suits one row, for any number of rows: it decides the order of sums.
  static const int places_of_one =
      resident_blocks("integer_row", integer_row_kernel<Format, 1>, kWarps * 32, kBytes[1]);
  const int log_warps = log_warps_of_tile(kWarps, static_cast<int>(ceil_div(K, kChunk)),
                                          ceil_div(all.tiles, std::min(all.tiles, places_of_one)));
  const auto go = [&]<int kM>() {
    constexpr int kShared = kIntegerBytes<Format, kM>;
    const auto kernel = integer_row_kernel<Format, kM>;
    static const int places = resident_blocks("integer_row", kernel, kWarps * 32, kShared);
    const int blocks = std::min(all.tiles, places);
    launch_early("integer_row", kernel, grid_of(blocks), dim3(kWarps * 32), kShared, stream, all,
                 const_matrix<bf16>(x), static_cast<int>(M), how, static_cast<int>(K), log_warps,
                 all.tiles / blocks, all.tiles % blocks);
  };
  M == 1   ? go.template operator()<1>()
  : M == 2 ? go.template operator()<2>()
           : go.template operator()<4>();
  return true;
}

}  // namespace lk
