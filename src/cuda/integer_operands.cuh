// x as integers and as the operands of tensor cores, for integer_row.cuh, which says how codes and integers are multiplied;
// and what a format of codes has for that.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/operands.cuh"
#include "cuda/reduce.cuh"
#include "cuda/row_parts.cuh"

namespace lk {

// Format: how codes become bytes; `static constexpr`
//   u32 kBytes       of a chunk's codes in a row
//   bool kWhole      a block is a chunk, so that there are no others
//   bool kSixteens   a run's halves have scales of their own: columns [0, 16) and [16, 32)
//   bool kHalves     lane t has columns 4t to 4t+3 and 16+4t to 16+4t+3 of a run; else 8t to 8t+7
//   bool kMixed      its bytes are columns 0 4 1 5 2 6 3 7 of those, else 0 to 7
//   int kWords       words that a lane reads of a run in one place
//   bool kSigned     bytes are signed
//   bool kSums       whether kBias, or the b of scales(), may be other than 0
//   int kBias        what is added to the codes
//   int kWarps       of a block: 16, or 8 where they need more registers; kBlocks: of a multiprocessor, of one row
//   bool kAsksAhead  whether a warp that has one row asks for its next chunk of x while it multiplies one: worth
//                    its instructions where the codes' own are few
// and
//   bytes(chunk, run, t, w)              w: the lane's eight codes; chunk: the codes of a row in shared memory
//   scales(chunk, upper, i, f)           of run 4 upper + i: f[s], of half s: {a, b}

// A chunk of M rows of x as integers, in a warp's shared memory.
template <class Format, int M>
struct IntegerRows {
  static constexpr int kHalves = Format::kSixteens ? 2 : 1;
  static constexpr bool kAsksGain = M == 1, kAsks = M == 1 && Format::kAsksAhead;
  union {
    std::uint32_t bytes[M][kRuns][2][kRun / 4];  // high and low ones, in the order of Format
    uint4 next_x[32];                            // a lane's own part of the next chunk
    uint4 first_gain[32];                        // of the norm's gain in the warp's first chunk
  };
  float scale[M][kRuns], sum[M][kRuns][kHalves];
  uint4 next_gate[kAsks ? 32 : 1];

  // Lane (g, t) asks for its part of a chunk, while nobody reads `bytes`.
  __device__ __forceinline__ void ask(const Matrix<const __nv_bfloat16>& x, int chunk, int runs,
                                      const RowInput& input) {
    static_assert(kAsks);
    const int lane = threadIdx.x % 32, run = chunk * kRuns + lane / 4;
    if (run >= runs) return;
    copy_run_of_x<Format::kHalves>(shared_address(next_x + lane), x.at(0, run * kRun), lane % 4);
    if (input.gate.data)
      copy_run_of_x<Format::kHalves>(shared_address(next_gate + lane), input.gate.at(0, run * kRun),
                                     lane % 4);
  }

  // The same for the norm's gain of the warp's first chunk.
  __device__ __forceinline__ void ask_gain(const __nv_bfloat16* gain, int chunk, int runs) {
    const int lane = threadIdx.x % 32, run = chunk * kRuns + lane / 4;
    if (run < runs)
      copy_run_of_x<Format::kHalves>(shared_address(first_gain + lane), gain + run * kRun,
                                     lane % 4);
  }

  // Lane (g, t) makes those of run g, of the x and the gain that it asked for, if it did, which have arrived.
  // `squares`: where the sum of x's squares is left for row 0, `stride` floats apart for the others, unless null.
  __device__ __forceinline__ void make(const Matrix<const __nv_bfloat16>& x, int n_x, int chunk,
                                       int runs, const RowInput& input, bool asked, bool asked_gain,
                                       bool keep, float* squares, int stride) {
    using u32 = std::uint32_t;
    constexpr u32 kAll = 0xffffffffu;
    constexpr float kMagic = 0x1.8p23f;  // a number added to it has its integer in the low bits
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int column = (chunk * kRuns + g) * kRun;
    const bool inside = chunk * kRuns + g < runs;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float v[8] = {};
      const auto load = [&](const __nv_bfloat16* row, const uint4* next) {
        return kAsks && asked ? next[lane] : run_of_x<Format::kHalves>(row, t);
      };
      if (inside && m < n_x) {
        const uint4 of_gate = input.gate.data ? load(input.gate.at(m, column), next_gate) : uint4{},
                    of_x = load(x.at(m, column), next_x);
        unpack_bf16(of_x, v);
        if (input.gate.data) {
          float gate[8];
          unpack_bf16(of_gate, gate);
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] = input.gated(gate[i], v[i]);
          const uint4 made{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                           pack_bf16(v[6], v[7])};
          unpack_bf16(made, v);
          if (keep) put_run<Format::kHalves>(input.made.at(m, column), t, made);
        }
      }
      if (input.gain) {
        float gain[8] = {}, sum = 0.0f;
        if (inside)
          unpack_bf16(kAsksGain && asked_gain ? first_gain[lane]
                                              : run_of_x<Format::kHalves>(input.gain + column, t),
                      gain);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(v[i], v[i], sum), v[i] *= gain[i];
        sum = warp_sum(sum);
        if (squares && lane == 0) squares[m * stride] = sum;
      }
      if (kAsksGain) __syncwarp();  // all have read what they asked for
      u32 most = 0;                 // of bits: NaN is the largest
#pragma unroll
      for (int i = 0; i < 8; ++i) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
      most = max(most, __shfl_xor_sync(kAll, most, 1));
      most = max(most, __shfl_xor_sync(kAll, most, 2));
      const float largest = __uint_as_float(most);
      const float inverse = largest > 1e-33f ? 32512.0f * __frcp_rn(largest) : 0.0f;
      const float unit = largest <= 1e-33f ? 0.0f : largest * (1.0f / 32512);
      u32 word[8];  // the low half: the integer + 128
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        word[i] = __float_as_uint(fmaf(v[i], inverse, kMagic + 128));
      }
      u32 part[2][2];
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const auto pick = [&](int a, int b, int c, int d) {
          const u32 byte = low ? 0x0040u : 0x0051u;
          return __byte_perm(__byte_perm(word[a], word[b], byte),
                             __byte_perm(word[c], word[d], byte), 0x5410) ^
                 (low ? 0x80808080u : 0u);
        };
        if constexpr (Format::kMixed)
          part[low][0] = pick(0, 4, 1, 5), part[low][1] = pick(2, 6, 3, 7);
        else
          part[low][0] = pick(0, 1, 2, 3), part[low][1] = pick(4, 5, 6, 7);
        *reinterpret_cast<uint2*>(&bytes[m][g][low][2 * t]) = {part[low][0], part[low][1]};
      }
      if (t == 0) scale[m][g] = unit;
      if constexpr (Format::kSums) {
        const auto total = [&](int i, int so_far) {
          constexpr int kOnes = 0x01010101;
          return 256 * __dp4a(static_cast<int>(part[0][i]), kOnes, 0) +
                 __dp4a(static_cast<int>(part[1][i]), kOnes, so_far);
        };
        int of[kHalves];
        of[0] = total(0, 0);
        of[kHalves - 1] = total(1, kHalves == 1 ? of[0] : 0);
#pragma unroll
        for (int s = 0; s < kHalves; ++s) {
          of[s] += __shfl_xor_sync(kAll, of[s], 1);
          of[s] += __shfl_xor_sync(kAll, of[s], 2);
          if (t == 0) sum[m][g][s] = static_cast<float>(of[s]) * unit;
        }
      }
    }
  }
};

// The lane's operands for a chunk of M rows.
template <class Format, int M>
struct IntegerOperands {
  static constexpr int kSide = 4 / M, kGroups = kRuns / kSide;
  static constexpr int kHalves = IntegerRows<Format, M>::kHalves;
  std::uint32_t b[kRuns][2];  // of the product with each run
  // Of the row and run whose sums the lane has, in each group: the scale of the integers, and their sum.
  float scale[kGroups], sum[kGroups][kHalves];

  __device__ __forceinline__ explicit IntegerOperands(const IntegerRows<Format, M>& rows) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, side = g / 2 / M;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint2 own =
          *reinterpret_cast<const uint2*>(&rows.bytes[g / 2 % M][j * kSide + side][g % 2][2 * t]);
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        const bool has = kSide == 1 || r == side;
        b[j * kSide + r][0] = has ? own.x : 0u, b[j * kSide + r][1] = has ? own.y : 0u;
      }
      scale[j] = rows.scale[t % M][j * kSide + t / M];
      if constexpr (Format::kSums)
#pragma unroll
        for (int s = 0; s < kHalves; ++s) sum[j][s] = rows.sum[t % M][j * kSide + t / M][s];
    }
  }
};

}  // namespace lk
