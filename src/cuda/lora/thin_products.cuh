// What the kernels of LoRA's thin products share; thin_backward.cu explains how they work.
#pragma once

#include <vector>

#include "cuda/lora/dropout_mask.cuh"
#include "cuda/lora/lora_kernels.h"
#include "cuda/mma.cuh"
#include "cuda/pack.cuh"

namespace lk {

namespace thin {

inline constexpr int kThreads = 256, kTokens = 64;
inline constexpr int kColumns = ThinPlan::kColumns, kMostParts = ThinPlan::kMostParts;

struct ThinArgs {
  struct Part {
    i64 begin, end;  // columns of the wide matrix
    int column;      // first column in the thin one
    int first_slab;  // number of its first slab of columns
    float* dw;       // (end - begin, rank), or its transpose
    i64 dw_ld;
    int rank;
    bool accumulate;
  };
  Matrix<const __nv_bfloat16> wide, thin, b;
  const float* row_scale;     // rstd, or null
  const __nv_bfloat16* gain;  // null without row_scale
  Matrix<__nv_bfloat16> ds;
  float *partial_dw, *partial_ds;
  i64 tokens, columns;  // T; N or K
  i64 thin_columns;     // S
  int tiles_per_slab, n_parts, n_row_slabs, n_column_slabs;
  float scale, dw_scale;
  Part parts[kMostParts];

  __device__ int part_of_slab(int slab) const {
    int p = 0;
    while (p + 1 < n_parts && slab >= parts[p + 1].first_slab) ++p;
    return p;
  }
  __device__ int part_of_column(i64 column) const {
    int p = 0;
    while (p + 1 < n_parts && column >= parts[p + 1].begin) ++p;
    return p;
  }
};

struct ThinDropout : DropoutMasks<kMostParts> {
  float keep_scale;                                    // 1 / (1 - p)
  signed char part_of_eight[ThinPlan::kMostThin / 8];  // the part of thin columns 8 i.., or -1
};

// Dropout of the wide matrix. Throws Error if `drop` has bits that are not this plan's.
inline ThinDropout thin_dropout(const ThinPlan& plan, const Tensor& wide, const InputDropout& drop,
                                std::span<const ThinPart> parts) {
  ThinDropout d{};
  if (drop.bits.defined()) {
    drop.bits.expect(*plan.kept_bits(wide.rows()), "cuda thin products: dropout's bits");
    d.kept = drop.bits.data<std::uint8_t>();
  }
  d.key = drop.key;
  d.threshold = dropout_threshold(drop.p);
  d.columns = wide.cols();
  d.n_parts = static_cast<int>(parts.size());
  d.keep_scale = 1.0f / (1.0f - drop.p);
  std::fill(std::begin(d.part_of_eight), std::end(d.part_of_eight), static_cast<signed char>(-1));
  for (std::size_t q = 0; q < parts.size(); ++q) {
    d.sites[q] = parts[q].site;
    for (i64 c = parts[q].column; c < parts[q].column + parts[q].rank; c += 8)
      d.part_of_eight[c / 8] = static_cast<signed char>(q);
  }
  return d;
}

// thin_dropout for a backward: the bits are forward's. Without dropout there are none.
inline ThinDropout kept_dropout(const ThinPlan& plan, const Tensor& wide, const InputDropout& drop,
                                std::span<const ThinPart> parts) {
  check(drop.p == 0 || drop.bits.defined(), "cuda thin products: forward kept no bits of dropout");
  return thin_dropout(plan, wide, drop, parts);
}

// Rows of 16 NR thin columns, padded by one 16-byte chunk so that eight rows lie in different
// banks.
template <int NR>
struct ThinTile {
  static constexpr int kChunks = 2 * NR, kRowBytes = 16 * (kChunks + 1);
  std::uint32_t base;
  __device__ __forceinline__ std::uint32_t at(int row, int chunk) const {
    return base + row * kRowBytes + chunk * 16;
  }
  // Two B fragments at rows [row, row + 16), thin columns [16 n, 16 n + 16).
  __device__ __forceinline__ Fragment4 fragment(int row, int n) const {
    int lane = threadIdx.x % 32;
    return load_matrix_x4_transposed(at(row + lane % 16, 2 * n + lane / 16));
  }
};

// The A fragment of tileᵀ: its rows are the tile's columns [16 step, 16 step + 16), its K the
// tile's rows [row, row + 16).
template <int COLS>
__device__ __forceinline__ Fragment4 fragment_a_of_transpose(SwizzledTile<COLS> tile, int row,
                                                             int step) {
  int lane = threadIdx.x % 32;
  return load_matrix_x4_transposed(tile.at(row, step, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}

// Loads rows [row0, row0 + ROWS) of the thin matrix from `column` on, times row_scale; zeros
// outside.
template <int NR, int ROWS>
__device__ __forceinline__ void load_thin(ThinTile<NR> tile, unsigned char* memory,
                                          const ThinArgs& p, i64 row0, int column) {
  const int valid = static_cast<int>(min(p.thin_columns - column, i64{16 * NR}));
  constexpr int kPacks = ROWS * 2 * NR / kThreads, kBatch = kPacks <= 12 ? kPacks : kPacks / 2;
  static_assert(kPacks % kBatch == 0 && ROWS * 2 * NR % kThreads == 0);
#pragma unroll
  for (int first = 0; first < kPacks; first += kBatch) {
    uint4 raw[kBatch];  // all on their way before the first is used
    float scale[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int j = (first + u) * kThreads + threadIdx.x, r = j / (2 * NR), chunk = j % (2 * NR);
      const bool inside = row0 + r < p.tokens && chunk * 8 < valid;
      raw[u] = make_uint4(0, 0, 0, 0), scale[u] = 1.0f;
      if (inside) raw[u] = *reinterpret_cast<const uint4*>(p.thin.at(row0 + r, column + chunk * 8));
      if (inside && p.row_scale) scale[u] = p.row_scale[row0 + r];
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int j = (first + u) * kThreads + threadIdx.x, r = j / (2 * NR), chunk = j % (2 * NR);
      auto* to = memory + (tile.at(r, chunk) - tile.base);
      if (p.row_scale) {
        float v[8];
        unpack_bf16(raw[u], v);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] *= scale[u];
        store_pack<8>(reinterpret_cast<__nv_bfloat16*>(to), v);
      } else {
        *reinterpret_cast<uint4*>(to) = raw[u];
      }
    }
  }
}

// dw (columns 16 warp.., thin) += tileᵀ thin, where the tile's tokens are rows [row, row + 64) of
// thin.
template <int NR>
__device__ __forceinline__ void multiply_into_dw(float (&dw)[2 * NR][4],
                                                 SwizzledTile<kColumns> tile, ThinTile<NR> thin,
                                                 int row) {
#pragma unroll
  for (int step = 0; step < kTokens / 16; ++step) {
    Fragment4 fa = fragment_a_of_transpose(tile, 16 * step, threadIdx.x / 32);
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      Fragment4 fb = thin.fragment(row + 16 * step, n);
      mma(dw[2 * n], fa, fb.r[0], fb.r[1]);
      mma(dw[2 * n + 1], fa, fb.r[2], fb.r[3]);
    }
  }
}

// dw += tileᵀ thin, where each part has a mask of its own over the tile.
template <int NR>
__device__ __forceinline__ void multiply_masked_into_dw(float (&dw)[2 * NR][4],
                                                        SwizzledTile<kColumns> tile,
                                                        ThinTile<NR> thin, int row, MaskTile mask,
                                                        const ThinDropout& drop) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int step = 0; step < kTokens / 16; ++step) {
    const Fragment4 fa = fragment_a_of_transpose(tile, 16 * step, warp);
    Fragment4 kept{};
    int kept_of = -1;
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      const Fragment4 fb = thin.fragment(row + 16 * step, n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int part = drop.part_of_eight[2 * n + half];
        if (part < 0) continue;
        if (part != kept_of) {
          const int token = 16 * step + 2 * t;
          // Bits g and g + 8 of a token are shifted to the top of bytes 0 and 1.
          std::uint32_t bits[4];
#pragma unroll
          for (int k = 0; k < 4; ++k)
            bits[k] = mask.two_octets(part, token + k % 2 + k / 2 * 8, 2 * warp) << (7 - g);
          kept.r[0] = fa.r[0] & pair_mask<0>(bits[0], bits[1]);
          kept.r[1] = fa.r[1] & pair_mask<1>(bits[0], bits[1]);
          kept.r[2] = fa.r[2] & pair_mask<0>(bits[2], bits[3]);
          kept.r[3] = fa.r[3] & pair_mask<1>(bits[2], bits[3]);
          kept_of = part;
        }
        mma(dw[2 * n + half], kept, fb.r[2 * half], fb.r[2 * half + 1]);
      }
    }
  }
}

// Stores the sums of the column tile at `column`, complete for these tokens, to the block's slab
// and resets them to zero.
template <int NR>
__device__ __forceinline__ void store_partial_dw(const ThinArgs& p, float (&dw)[2 * NR][4],
                                                 i64 column, i64 column_end) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < 2 * NR; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      i64 c = column + 16 * warp + g + 8 * half;
      if (c < column_end)
        *reinterpret_cast<float2*>(p.partial_dw + (blockIdx.y * p.columns + c) * 16 * NR + 8 * n +
                                   2 * t) = make_float2(dw[n][2 * half], dw[n][2 * half + 1]);
      dw[n][2 * half] = dw[n][2 * half + 1] = 0.0f;
    }
}

// Adds the partial sums in order: those of dw for every column of the wide matrix and every thin
// column of its part, then (from block `dw_blocks` on) those of ds for every token and thin column.
template <int NR, bool TRANSPOSED>
__global__ void __launch_bounds__(kThreads)
    thin_add_kernel(const __grid_constant__ ThinArgs p, i64 dw_blocks) {
  constexpr int kThin = 16 * NR;
  if (blockIdx.x < dw_blocks) {
    i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
    i64 column = i / kThin;
    int thin = static_cast<int>(i % kThin);
    if (column >= p.columns) return;
    float sum = 0.0f;
    for (int z = 0; z < p.n_row_slabs; ++z)
      sum += p.partial_dw[(z * p.columns + column) * kThin + thin];
    if (p.gain) sum *= to_float(p.gain[column]);
    sum *= p.dw_scale;
    if constexpr (TRANSPOSED) {  // every part spans all columns
      for (int q = 0; q < p.n_parts; ++q) {
        const ThinArgs::Part& part = p.parts[q];
        int r = thin - part.column;
        if (r < 0 || r >= part.rank) continue;
        float* to = part.dw + r * part.dw_ld + column;
        *to = part.accumulate ? *to + sum : sum;
      }
    } else {
      const ThinArgs::Part& part = p.parts[p.part_of_column(column)];
      if (column < part.begin || column >= part.end || thin >= part.rank || !part.dw) return;
      float* to = part.dw + (column - part.begin) * part.dw_ld + thin;
      *to = part.accumulate ? *to + sum : sum;
    }
  } else {
    i64 i = (static_cast<i64>(blockIdx.x) - dw_blocks) * kThreads + threadIdx.x;
    i64 row = i / p.thin_columns;
    int column = static_cast<int>(i % p.thin_columns);
    if (row >= p.tokens) return;
    float sum = 0.0f;
    for (int q = 0; q < p.n_parts; ++q) {
      const ThinArgs::Part& part = p.parts[q];
      int r = column - part.column;
      if (r < 0 || r >= part.rank) continue;
      int end = q + 1 < p.n_parts ? p.parts[q + 1].first_slab : p.n_column_slabs;
      for (int z = part.first_slab; z < end; ++z)
        sum += p.partial_ds[(z * p.tokens + row) * kThin + r];
    }
    *p.ds.at(row, column) = from_float<__nv_bfloat16>(p.scale * sum);
  }
}

inline ThinArgs thin_arguments(const Tensor& wide, const Tensor& thin,
                               std::span<const ThinPart> parts) {
  ThinArgs p{};
  p.wide = const_matrix<bf16>(wide);
  p.thin = const_matrix<bf16>(thin);
  p.tokens = wide.rows();
  p.columns = wide.cols();
  p.thin_columns = thin.cols();
  p.dw_scale = 1.0f;
  p.n_parts = static_cast<int>(parts.size());
  for (std::size_t q = 0; q < parts.size(); ++q) {
    const ThinPart& part = parts[q];
    p.parts[q] = {.begin = part.begin,
                  .end = part.end,
                  .column = static_cast<int>(part.column),
                  .first_slab = 0,
                  .dw = part.dw.data<float>(),
                  .dw_ld = part.dw.ld(),
                  .rank = static_cast<int>(part.rank),
                  .accumulate = part.mode == GradMode::Add};
  }
  return p;
}

// Memory of the partial sums; it may be freed once all work is submitted.
struct ThinScratch {
  Tensor dw, ds;
};

// Copies the plan's cut into the arguments and allocates its scratch.
inline ThinScratch use_cut(ThinArgs& p, const ThinCut& cut, CudaBackend& backend) {
  p.n_row_slabs = cut.row_slabs;
  p.n_column_slabs = cut.column_slabs;
  p.tiles_per_slab = cut.tiles_per_slab;
  ThinScratch scratch;
  scratch.dw = backend.empty(Tag::Workspace, DType::F32, *cut.partial_dw);
  p.partial_dw = scratch.dw.data<float>();
  if (cut.partial_s) {
    scratch.ds = backend.empty(Tag::Workspace, DType::F32, *cut.partial_s);
    p.partial_ds = scratch.ds.data<float>();
    int slabs = 0;  // parts with columns of their own lie one after the other
    for (int q = 0; q < p.n_parts; ++q) {
      ThinArgs::Part& part = p.parts[q];
      part.first_slab = slabs;
      slabs +=
          static_cast<int>(ceil_div(ceil_div(part.end - part.begin, kColumns), cut.tiles_per_slab));
    }
  }
  return scratch;
}

// The arguments as the main kernel sees them where every part spans all columns of the wide matrix:
// a single part.
inline ThinArgs over_all_thin_columns(ThinArgs p) {
  p.n_parts = 1;
  p.parts[0].begin = 0, p.parts[0].end = p.columns, p.parts[0].column = 0;
  p.parts[0].first_slab = 0;
  return p;
}

// Calls go<NR> with NR, the planned kernel's number of 16-column groups of thin columns.
template <class Go>
void with_sixteens(int sixteens, Go&& go) {
  switch (sixteens) {
    case 1:
      return go.template operator()<1>();
    case 2:
      return go.template operator()<2>();
    case 3:
      return go.template operator()<3>();
    case 4:
      return go.template operator()<4>();
    default:
      return go.template operator()<6>();
  }
}

template <int NR, bool TRANSPOSED>
void add_partial_sums(const ThinArgs& p, cudaStream_t stream) {
  i64 dw_blocks = ceil_div(p.columns * 16 * NR, kThreads);
  i64 ds_blocks = p.partial_ds ? ceil_div(p.tokens * p.thin_columns, kThreads) : 0;
  launch("thin_add", thin_add_kernel<NR, TRANSPOSED>, grid_of(dw_blocks + ds_blocks),
         dim3(kThreads), 0, stream, p, dw_blocks);
}

}  // namespace thin
}  // namespace lk
