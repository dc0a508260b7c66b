// LoRA's thin products in backward; each wide matrix is read once.
//
// Maths      backward_b:  ds = scale dy b   and   db_p = dy[:, p]ᵀ s[:, p]
//            backward_a:  da_p = ds[:, p]ᵀ x,  x = h * rstd * gain or x itself
//            p: a projection, columns [begin, end) of the wide matrix dy, columns [column, column +
//            rank) of the thin ones. The norm is folded in: ds's rows times rstd, da's columns
//            times gain, so a normed x need not be made again.
// Shapes     dy (T,N), x (T,K) wide; s, ds (T,S), b (N,S) thin; all BF16; db (N,rank), da (rank,K)
//            F32
// Why own    these are matrix products only by name: their work is to read the wide matrix. As one
//            GEMM for each of ds, db_q, db_k, db_v the wide matrix comes from memory twice, and
//            da_q, da_k, da_v read x three times.
// Plan       A block owns ROWS tokens and `tiles_per_slab` tiles of 128 columns, as a ThinPlan cuts
//            them. Tiles of 64 tokens x 128 columns travel through kStages buffers of shared
//            memory; from each, eight warps add to 16 columns each of the transposed product (K: 64
//            tokens), and to a 16 x 8 piece each of ds (K: 128 columns), whose sums stay in
//            registers for all tokens of the block. NR: number of 16-column groups of
//            thin columns. Partial sums are F32: of db and da one for each slab of tokens, of ds
//            one for each slab of columns; a second kernel adds them in slab order. No atomics:
//            same bits every run. The cut depends on the shape alone.
// Bytes      the wide matrix once; partial sums are 32 NR / ROWS of that
// Limits     those of ThinPlan: one rank <= 32 (b) or all ranks, in eights, <= 96 (a), and parts and rows
//            that start at 16 bytes; others take the general products
#include "cuda/lora/thin_products.cuh"

namespace lk {
using namespace thin;

namespace {

template <bool WITH_DS>
constexpr int kStages = WITH_DS ? 4 : 3;

template <int NR, bool WITH_DS, int ROWS>
constexpr std::size_t kSharedBytes = std::size_t{kStages<WITH_DS>} * kTokens* kColumns * 2 +
                                     ROWS* ThinTile<NR>::kRowBytes +
                                     (WITH_DS ? 2 * kColumns * ThinTile<NR>::kRowBytes : 0);

// Block (x, y): slab x of columns, slab y of tokens. DROP: the wide matrix is masked by the bits that
// forward kept, which travel with its tiles.
template <int NR, bool WITH_DS, int ROWS, bool DROP>
__global__ void __launch_bounds__(kThreads, 2)
    thin_backward_kernel(const __grid_constant__ ThinArgs p,
                         const __grid_constant__ ThinDropout drop) {
  constexpr int kInner = ROWS / kTokens, kThin = 16 * NR;
  constexpr int kStages = lk::kStages<WITH_DS>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const std::uint32_t tiles_at = shared_address(shared);
  constexpr int kTileBytes = kTokens * kColumns * 2;
  unsigned char* thin_memory = shared + kStages * kTileBytes;
  const ThinTile<NR> thin{shared_address(thin_memory)};
  const std::uint32_t b_at = thin.base + ROWS * ThinTile<NR>::kRowBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  const ThinArgs::Part& part = p.parts[p.part_of_slab(static_cast<int>(blockIdx.x))];
  const i64 width = static_cast<i64>(p.tiles_per_slab) * kColumns;
  const i64 column0 = part.begin + (static_cast<i64>(blockIdx.x) - part.first_slab) * width;
  const i64 column1 = min(part.end, column0 + width);
  const i64 row0 = static_cast<i64>(blockIdx.y) * ROWS;
  const int rows = static_cast<int>(min(p.tokens - row0, i64{ROWS}));
  const int n_tiles = static_cast<int>((column1 - column0 + kColumns - 1) / kColumns) * kInner;
  const int thin_valid = static_cast<int>(min(p.thin_columns - part.column, i64{kThin}));

  [[maybe_unused]] auto mask_of = [&](int i) {
    return MaskTile{thin_memory + ROWS * ThinTile<NR>::kRowBytes +
                    i % kStages * drop.n_parts * MaskTile::kBytes};
  };
  // Fetches tile i: column tile i / kInner, tokens 64 (i % kInner). The first tile of a column tile
  // also brings the column tile's part of b.
  auto fetch = [&](int i) {
    if (i < n_tiles) {
      const i64 column = column0 + static_cast<i64>(i / kInner) * kColumns;
      const int row = i % kInner * kTokens;
      const int valid = static_cast<int>(min(column1 - column, i64{kColumns}));
      SwizzledTile<kColumns> tile{tiles_at + i % kStages * kTileBytes};
      tile.load_async<kTokens, kThreads>(p.wide.at(row0 + row, column), p.wide.ld, rows - row,
                                         valid);
      if constexpr (DROP) {
        if (row < rows) drop.fetch<kThreads>(mask_of(i), row0 + row, column);
      }
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
    copy_async_commit();  // commits even an empty group: the wait below counts groups
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  load_thin<NR, ROWS>(thin, thin_memory, p, row0, part.column);

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
      if constexpr (DROP)
        multiply_masked_into_dw<NR>(dw, tile, thin, inner * kTokens, mask_of(i), drop);
      else
        multiply_into_dw<NR>(dw, tile, thin, inner * kTokens);
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
    store_partial_dw<NR>(p, dw, column0 + static_cast<i64>(outer) * kColumns, column1);
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

template <int NR, bool WITH_DS, bool DROP = false>
void run(ThinArgs& p, const ThinCut& cut, CudaBackend& backend, const ThinDropout& drop = {}) {
  constexpr int kMostRows = ThinPlan::most_rows(NR, WITH_DS);
  ThinScratch scratch = use_cut(p, cut, backend);
  auto go = [&]<int ROWS>() {
    const std::size_t masks =
        DROP ? std::size_t{kStages<WITH_DS>} * drop.n_parts * MaskTile::kBytes : 0;
    launch("thin_backward", thin_backward_kernel<NR, WITH_DS, ROWS, DROP>,
           grid_of(p.n_column_slabs, p.n_row_slabs), dim3(kThreads),
           kSharedBytes<NR, WITH_DS, ROWS> + masks, backend.stream(),
           WITH_DS ? p : over_all_thin_columns(p), drop);
  };
  cut.rows == kMostRows ? go.template operator()<kMostRows>()
                        : go.template operator()<kMostRows / 2>();
  add_partial_sums<NR, !WITH_DS>(p, backend.stream());
}

}  // namespace

void CudaLoraKernels::run_backward_b(const ThinPlan& plan, const Tensor& ds, double scale,
                                     const Tensor& dy, const Tensor& b, const Tensor& s,
                                     std::span<const ThinPart> parts) {
  check(packable(8, 8, dy, s, b), "cuda thin backward_b: rows must start at 16 bytes");
  ThinArgs p = thin_arguments(dy, s, parts);
  p.b = const_matrix<bf16>(b);
  p.ds = matrix<bf16>(ds);
  p.scale = static_cast<float>(scale);
  const ThinCut cut = plan.cut_backward_b(dy.rows());
  if (plan.backward_b() == 1)
    run<1, true>(p, cut, backend_);
  else
    run<2, true>(p, cut, backend_);
}

void CudaLoraKernels::run_backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                                     const NormedInput* norm, std::span<const ThinPart> parts,
                                     const InputDropout& drop) {
  check(packable(8, 8, x, ds), "cuda thin backward_a: rows must start at 16 bytes");
  ThinArgs p = thin_arguments(x, ds, parts);
  if (norm) {
    p.row_scale = norm->rstd.data<float>();
    p.gain = pointer<bf16>(norm->gain.values());
  }
  const ThinCut cut = plan.cut_backward_a(x.rows());
  const ThinDropout masks = kept_dropout(plan, x, drop, parts);
  if (drop.p > 0) p.dw_scale = masks.keep_scale;
  with_sixteens(plan.backward_a(), [&]<int NR>() {
    if (drop.p > 0)
      run<NR, false, true>(p, cut, backend_, masks);
    else
      run<NR, false>(p, cut, backend_);
  });
}

}  // namespace lk
