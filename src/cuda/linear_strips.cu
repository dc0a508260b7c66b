// LoRA's thin products in backward, each wide matrix read once.
//
// Maths      strips_backward_b:  ds = scale dy b   and   db_p = dy[:, p]ᵀ s[:, p]
//            strips_backward_a:  da_p = ds[:, p]ᵀ x,  x = h * rstd * gain or x itself
//            p: a projection, columns [begin, end) of the wide matrix dy, columns [column, column +
//            rank) of the thin ones. The norm is folded in: ds's rows times rstd, da's columns
//            times gain, so a normed x need not be made again.
// Shapes     dy (T,N), x (T,K) wide; s, ds (T,S), b (N,S) thin; all BF16; db (N,rank), da (rank,K)
//            F32
// Why own    these are matrix products only by name: their work is to read the wide matrix. As one
//            GEMM for each of ds, db_q, db_k, db_v the wide matrix comes from memory twice, and
//            da_q, da_k, da_v read x three times.
// Plan       A block owns kRows tokens and `tiles_per_slab` tiles of 128 columns. Tiles of 64
//            tokens x 128 columns travel through kStages buffers of shared memory; from each, eight
//            warps add to 16 columns each of the transposed product (K: 64 tokens), and to a 16 x 8
//            piece each of ds (K: 128 columns), whose sums stay in registers for all tokens of the
//            block. NR: sixteens of thin columns.
//            Then partial sums, F32: of db and da one for each slab of tokens, of ds one for each
//            slab of columns; a second kernel adds them in slab order. No atomics: same bits every
//            run. The cut depends on the shape alone.
// Bytes      the wide matrix once; partial sums are 2 NR 16 / kRows of that
// Limits     ranks in multiples of 8 with one rank <= 32 (b) or all ranks <= 96 (a), and rows that
//            start at 16 bytes; others take the general products
#include "cuda/cuda_backend.h"
#include "cuda/mma.cuh"
#include "cuda/pack.cuh"

namespace lk {
namespace {

constexpr int kThreads = 256, kTokens = 64, kColumns = 128, kMaxParts = 4;
constexpr i64 kBlocks = 264;  // two for each multiprocessor of an H100, all at once

// Tokens of a block: fewer where the sums of ds, or the thin rows, would leave no room for a second
// block beside it.
template <int NR, bool WITH_DS>
constexpr int kRows = NR <= (WITH_DS ? 1 : 3) ? 512 : 256;
template <bool WITH_DS>
constexpr int kStages = WITH_DS ? 4 : 3;

struct StripArgs {
  struct Part {
    i64 begin, end;  // columns of the wide matrix
    int column;      // of the thin one
    int first_slab;  // of columns
    float* dw;       // (end - begin, rank), or its transpose
    i64 dw_ld;
    int rank;
    bool accumulate;
  };
  Matrix<const __nv_bfloat16> wide, thin, b;
  const float* row_scale;     // rstd, or null
  const __nv_bfloat16* gain;  // with it
  Matrix<__nv_bfloat16> ds;
  float *partial_dw, *partial_ds;
  i64 tokens, columns;  // T; N or K
  i64 thin_columns;     // S
  int tiles_per_slab, n_parts, n_row_slabs, n_column_slabs;
  float scale;
  Part parts[kMaxParts];

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

// Rows of 16 NR thin columns, one 16-byte chunk apart, so that eight rows lie in different banks.
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

// The A fragment of tileᵀ: its rows are columns [16 step, 16 step + 16), its K rows [row, row +
// 16).
template <int COLS>
__device__ __forceinline__ Fragment4 fragment_a_of_transpose(SwizzledTile<COLS> tile, int row,
                                                             int step) {
  int lane = threadIdx.x % 32;
  return load_matrix_x4_transposed(tile.at(row, step, lane / 16 * 8 + lane % 8, lane / 8 % 2));
}

template <int NR, bool WITH_DS>
constexpr std::size_t kSharedBytes = std::size_t{kStages<WITH_DS>} * kTokens* kColumns * 2 +
                                     kRows<NR, WITH_DS>* ThinTile<NR>::kRowBytes +
                                     (WITH_DS ? 2 * kColumns * ThinTile<NR>::kRowBytes : 0);

// Block (x, y): slab x of columns, slab y of tokens.
template <int NR, bool WITH_DS>
__global__ void __launch_bounds__(kThreads, 2) strips_kernel(const __grid_constant__ StripArgs p) {
  constexpr int kInner = kRows<NR, WITH_DS> / kTokens, kThin = 16 * NR;
  constexpr int kStages = lk::kStages<WITH_DS>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const std::uint32_t tiles_at = shared_address(shared);
  constexpr int kTileBytes = kTokens * kColumns * 2;
  unsigned char* thin_memory = shared + kStages * kTileBytes;
  const ThinTile<NR> thin{shared_address(thin_memory)};
  const std::uint32_t b_at = thin.base + kRows<NR, WITH_DS> * ThinTile<NR>::kRowBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  const StripArgs::Part& part = p.parts[p.part_of_slab(static_cast<int>(blockIdx.x))];
  const i64 width = static_cast<i64>(p.tiles_per_slab) * kColumns;
  const i64 column0 = part.begin + (static_cast<i64>(blockIdx.x) - part.first_slab) * width;
  const i64 column1 = min(part.end, column0 + width);
  const i64 row0 = static_cast<i64>(blockIdx.y) * kRows<NR, WITH_DS>;
  const int rows = static_cast<int>(min(p.tokens - row0, i64{kRows<NR, WITH_DS>}));
  const int n_tiles = static_cast<int>((column1 - column0 + kColumns - 1) / kColumns) * kInner;
  const int thin_valid = static_cast<int>(min(p.thin_columns - part.column, i64{kThin}));

  // Tile i: column tile i / kInner, tokens 64 (i % kInner). With the first of a column tile comes
  // its part of b.
  auto fetch = [&](int i) {
    if (i < n_tiles) {
      const i64 column = column0 + static_cast<i64>(i / kInner) * kColumns;
      const int row = i % kInner * kTokens;
      const int valid = static_cast<int>(min(column1 - column, i64{kColumns}));
      SwizzledTile<kColumns> tile{tiles_at + i % kStages * kTileBytes};
      tile.load_async<kTokens, kThreads>(p.wide.at(row0 + row, column), p.wide.ld, rows - row,
                                         valid);
      if constexpr (WITH_DS) {
        if (row == 0) {
          ThinTile<NR> b{b_at + i / kInner % 2 * kColumns * ThinTile<NR>::kRowBytes};
          for (int j = threadIdx.x; j < kColumns * 2 * NR; j += kThreads) {
            int r = j / (2 * NR), chunk = j % (2 * NR);
            bool inside = r < valid && chunk * 8 < thin_valid;
            copy_async_16(b.at(r, chunk),
                          inside ? p.b.at(column + r, part.column + chunk * 8) : p.b.data, inside);
          }
        }
      }
    }
    copy_async_commit();  // also an empty group: the wait below counts groups
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  for (int j = threadIdx.x; j < kRows<NR, WITH_DS> * 2 * NR; j += kThreads) {
    int r = j / (2 * NR), chunk = j % (2 * NR);
    float v[8] = {};
    if (r < rows && chunk * 8 < thin_valid) {
      load_pack<8>(p.thin.at(row0 + r, part.column + chunk * 8), v);
      if (p.row_scale) {
        float scale = p.row_scale[row0 + r];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] *= scale;
      }
    }
    store_pack<8>(reinterpret_cast<__nv_bfloat16*>(thin_memory + (thin.at(r, chunk) - thin.base)),
                  v);
  }

  float ds[WITH_DS ? kInner : 1][NR][4] = {};
  float dw[2 * NR][4] = {};
  for (int outer = 0; outer * kInner < n_tiles; ++outer) {
    const ThinTile<NR> b{b_at + outer % 2 * kColumns * ThinTile<NR>::kRowBytes};
#pragma unroll
    for (int inner = 0; inner < kInner; ++inner) {
      const int i = outer * kInner + inner;
      copy_async_wait_but<kStages - 2>();
      __syncthreads();
      fetch(i + kStages - 1);
      SwizzledTile<kColumns> tile{tiles_at + i % kStages * kTileBytes};
      // dw (columns 16 warp.., thin) += tileᵀ thin
#pragma unroll
      for (int step = 0; step < kTokens / 16; ++step) {
        Fragment4 fa = fragment_a_of_transpose(tile, 16 * step, warp);
#pragma unroll
        for (int n = 0; n < NR; ++n) {
          Fragment4 fb = thin.fragment(inner * kTokens + 16 * step, n);
          mma(dw[2 * n], fa, fb.r[0], fb.r[1]);
          mma(dw[2 * n + 1], fa, fb.r[2], fb.r[3]);
        }
      }
      // ds (tokens 16 (warp % 4).., thin 16 n + 8 (warp / 4)..) += tile b
      if constexpr (WITH_DS) {
#pragma unroll
        for (int step = 0; step < kColumns / 16; ++step) {
          Fragment4 fa = fragment_a(tile, 16 * (warp % 4), step);
#pragma unroll
          for (int n = 0; n < NR; ++n) {
            std::uint32_t b0, b1;
            load_matrix_x2_transposed(b.at(16 * step + lane % 16, 2 * n + warp / 4), b0, b1);
            mma(ds[inner][n], fa, b0, b1);
          }
        }
      }
    }
    // The transposed product of this column tile is complete for these tokens.
    const i64 column = column0 + static_cast<i64>(outer) * kColumns + 16 * warp;
#pragma unroll
    for (int n = 0; n < 2 * NR; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        i64 c = column + g + 8 * half;
        if (c < column1)
          *reinterpret_cast<float2*>(p.partial_dw + (blockIdx.y * p.columns + c) * kThin + 8 * n +
                                     2 * t) = make_float2(dw[n][2 * half], dw[n][2 * half + 1]);
        dw[n][2 * half] = dw[n][2 * half + 1] = 0.0f;
      }
  }
  if constexpr (WITH_DS) {
#pragma unroll
    for (int inner = 0; inner < kInner; ++inner)
#pragma unroll
      for (int n = 0; n < NR; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int row = inner * kTokens + 16 * (warp % 4) + g + 8 * half;
          if (row < rows)
            *reinterpret_cast<float2*>(p.partial_ds + (blockIdx.x * p.tokens + row0 + row) * kThin +
                                       16 * n + 8 * (warp / 4) + 2 * t) =
                make_float2(ds[inner][n][2 * half], ds[inner][n][2 * half + 1]);
        }
  }
  copy_async_wait();
}

// Adds the partial sums, in order: of dw for every column of the wide matrix and every thin column
// of its part, then (from `dw_blocks` on) of ds for every token and thin column.
template <int NR, bool TRANSPOSED>
__global__ void __launch_bounds__(kThreads)
    strips_add_kernel(const __grid_constant__ StripArgs p, i64 dw_blocks) {
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
    if constexpr (TRANSPOSED) {  // every part has all columns
      for (int q = 0; q < p.n_parts; ++q) {
        const StripArgs::Part& part = p.parts[q];
        int r = thin - part.column;
        if (r < 0 || r >= part.rank) continue;
        float* to = part.dw + r * part.dw_ld + column;
        *to = part.accumulate ? *to + sum : sum;
      }
    } else {
      const StripArgs::Part& part = p.parts[p.part_of_column(column)];
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
      const StripArgs::Part& part = p.parts[q];
      int r = column - part.column;
      if (r < 0 || r >= part.rank) continue;
      int end = q + 1 < p.n_parts ? p.parts[q + 1].first_slab : p.n_column_slabs;
      for (int z = part.first_slab; z < end; ++z)
        sum += p.partial_ds[(z * p.tokens + row) * kThin + r];
    }
    *p.ds.at(row, column) = from_float<__nv_bfloat16>(p.scale * sum);
  }
}

// How many column tiles a block takes, so that all blocks are resident at once if they can.
template <class Range>
int tiles_per_slab(i64 row_slabs, const Range& widths) {
  i64 tiles = 0;
  for (i64 w : widths) tiles += ceil_div(w, kColumns);
  i64 per_slab = std::max<i64>(1, tiles * row_slabs / kBlocks);
  auto blocks = [&] {
    i64 n = 0;
    for (i64 w : widths) n += ceil_div(ceil_div(w, kColumns), per_slab);
    return n * row_slabs;
  };
  while (blocks() > kBlocks && per_slab < tiles) ++per_slab;
  return static_cast<int>(per_slab);
}

bool aligned(const Tensor& x) { return packable(8, 8, x); }

template <int NR, bool WITH_DS>
void run_strips(StripArgs& p, const std::vector<i64>& widths, CudaBackend& backend,
                cudaStream_t stream) {
  p.n_row_slabs = static_cast<int>(ceil_div(p.tokens, kRows<NR, WITH_DS>));
  p.tiles_per_slab = tiles_per_slab(p.n_row_slabs, widths);
  p.n_column_slabs = 0;
  for (std::size_t q = 0; q < widths.size(); ++q) {
    p.parts[q].first_slab = p.n_column_slabs;
    p.n_column_slabs += static_cast<int>(ceil_div(ceil_div(widths[q], kColumns), p.tiles_per_slab));
  }
  Tensor dw = backend.empty(Tag::Workspace, DType::F32, {p.n_row_slabs, p.columns, 16 * NR}), ds;
  p.partial_dw = dw.data<float>();
  if (WITH_DS) {
    ds = backend.empty(Tag::Workspace, DType::F32, {p.n_column_slabs, p.tokens, 16 * NR});
    p.partial_ds = ds.data<float>();
  }
  StripArgs main = p;
  if (!WITH_DS) {  // one slab range over all thin columns
    main.n_parts = 1;
    main.parts[0].begin = 0, main.parts[0].end = p.columns, main.parts[0].column = 0;
  }
  launch("strips", strips_kernel<NR, WITH_DS>, grid_of(p.n_column_slabs, p.n_row_slabs),
         dim3(kThreads), kSharedBytes<NR, WITH_DS>, stream, main);
  i64 dw_blocks = ceil_div(p.columns * 16 * NR, kThreads);
  i64 ds_blocks = WITH_DS ? ceil_div(p.tokens * p.thin_columns, kThreads) : 0;
  launch("strips_add", strips_add_kernel<NR, !WITH_DS>, grid_of(dw_blocks + ds_blocks),
         dim3(kThreads), 0, stream, p, dw_blocks);
}

StripArgs arguments(const Tensor& wide, const Tensor& thin, std::span<const StripPart> parts) {
  StripArgs p{};
  p.wide = const_matrix<bf16>(wide);
  p.thin = const_matrix<bf16>(thin);
  p.tokens = wide.rows();
  p.columns = wide.cols();
  p.thin_columns = thin.cols();
  p.n_parts = static_cast<int>(parts.size());
  for (std::size_t q = 0; q < parts.size(); ++q) {
    const StripPart& part = parts[q];
    p.parts[q] = {.begin = part.begin,
                  .end = part.end,
                  .column = static_cast<int>(part.column),
                  .dw = part.dw.data<float>(),
                  .dw_ld = part.dw.ld(),
                  .rank = static_cast<int>(part.rank),
                  .accumulate = part.mode == GradMode::Add};
  }
  return p;
}

bool fits(std::span<const StripPart> parts, const Tensor& wide, const Tensor& thin) {
  if (parts.empty() || parts.size() > kMaxParts || wide.rows() == 0) return false;
  for (const StripPart& part : parts)
    if (part.rank % 8 || part.column % 8 || part.begin % 8 || part.end % 8 ||
        part.mode == GradMode::Skip)
      return false;
  return wide.dtype() == DType::BF16 && thin.dtype() == DType::BF16 && thin.cols() % 8 == 0 &&
         aligned(wide) && aligned(thin);
}

}  // namespace

void CudaBackend::run_strips_backward_b(const Tensor& ds, double scale, const Tensor& dy,
                                        const Tensor& b, const Tensor& s,
                                        std::span<const StripPart> parts) {
  i64 rank = 0;
  std::vector<i64> widths;
  for (const StripPart& part : parts) {
    rank = std::max(rank, part.rank);
    widths.push_back(part.end - part.begin);
  }
  if (!fits(parts, dy, s) || !aligned(b) || rank > 32) {
    Backend::run_strips_backward_b(ds, scale, dy, b, s, parts);
    return;
  }
  StripArgs p = arguments(dy, s, parts);
  p.b = const_matrix<bf16>(b);
  p.ds = matrix<bf16>(ds);
  p.scale = static_cast<float>(scale);
  if (rank <= 16)
    run_strips<1, true>(p, widths, *this, stream());
  else
    run_strips<2, true>(p, widths, *this, stream());
}

void CudaBackend::run_strips_backward_a(const Tensor& ds, const Tensor& x, const NormedInput* norm,
                                        std::span<const StripPart> parts) {
  if (!fits(parts, x, ds) || ds.cols() > 96) {
    Backend::run_strips_backward_a(ds, x, norm, parts);
    return;
  }
  StripArgs p = arguments(x, ds, parts);
  if (norm) {
    p.row_scale = norm->rstd.data<float>();
    p.gain = pointer<bf16>(norm->gain.values());
  }
  const std::vector<i64> widths{x.cols()};
  auto go = [&]<int NR>() { run_strips<NR, false>(p, widths, *this, stream()); };
  switch (ceil_div(ds.cols(), 16)) {
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

}  // namespace lk
