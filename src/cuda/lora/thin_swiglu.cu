// SwiGLU's backward combined with LoRA's da: y = silu(gate) * up is recomputed, multiplied where it
// is computed, and never stored.
//
// Maths      dgate, dup as in gated.cu;  da_p = ds[:, p]ᵀ y
// Shapes     dy, gate, up, dgate, dup (T,F) BF16; ds (T,S) BF16; da (rank,F) F32
// Plan       as thin_backward.cu: a block owns ROWS tokens and some tiles of 128 columns. Its
//            threads make 64 x 128 of y at a time, in one of two buffers of shared memory, while
//            warps that are ahead multiply the tile before. Loads of one block overlap with the
//            products of the two others on a multiprocessor.
// Bytes      3 in, 2 out: a third less than gated.cu and thin_backward.cu one after the other; with
//            dropout, of which there is one mask, 1 / 16 of an input more
// Numbers    y is rounded to BF16 before it is multiplied, as if it had been stored
#include "cuda/gated.cuh"
#include "cuda/lora/thin_products.cuh"

namespace lk {
using namespace thin;

namespace {

constexpr int kTileBytes = kTokens * kColumns * 2;

struct SwigluTensors {
  Matrix<__nv_bfloat16> dgate, dup;
  Matrix<const __nv_bfloat16> gate, up;  // dy is the wide matrix
};

template <int NR, int ROWS>
constexpr std::size_t kSharedBytes = 2 * kTileBytes + ROWS* ThinTile<NR>::kRowBytes;

// DROP: masks the y of da by the bits that forward kept, but not the gradients.
template <int NR, int ROWS, bool DROP>
__global__ void __launch_bounds__(kThreads, NR == 1 ? 3 : 2)
    thin_swiglu_kernel(const __grid_constant__ ThinArgs p, const __grid_constant__ SwigluTensors m,
                       const __grid_constant__ ThinDropout drop) {
  constexpr int kInner = ROWS / kTokens, kChunks = kColumns / 8;
  extern __shared__ __align__(1024) unsigned char shared[];
  unsigned char* thin_memory = shared + 2 * kTileBytes;
  const ThinTile<NR> thin{shared_address(thin_memory)};
  const i64 column0 = static_cast<i64>(blockIdx.x) * p.tiles_per_slab * kColumns;
  const i64 column1 = min(p.columns, column0 + static_cast<i64>(p.tiles_per_slab) * kColumns);
  const i64 row0 = static_cast<i64>(blockIdx.y) * ROWS;
  load_thin<NR, ROWS>(thin, thin_memory, p, row0, 0);

  float dw[2 * NR][4] = {};
  const int first_row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
  for (i64 column = column0; column < column1; column += kColumns) {
    const bool inside = column + chunk * 8 < column1;
#pragma unroll 1
    for (int inner = 0; inner < kInner; ++inner) {
      unsigned char* tile_memory = shared + inner % 2 * kTileBytes;
      const SwizzledTile<kColumns> tile{shared_address(tile_memory)};
      [[maybe_unused]] const unsigned char* bits = nullptr;
      if constexpr (DROP) bits = drop.kept_at(row0 + inner * kTokens, column);
#pragma unroll
      for (int n = 0; n < kTokens * kChunks / kThreads; ++n) {
        const int row = first_row + n * (kThreads / kChunks);
        const i64 token = row0 + inner * kTokens + row, col = column + chunk * 8;
        float d[8] = {};
        if (inside && token < p.tokens) {
          float g[8], u[8];
          load_pack<8>(p.wide.at(token, col), d);
          load_pack<8>(m.gate.at(token, col), g);
          load_pack<8>(m.up.at(token, col), u);
          swiglu_gradients<true>(d, g, u);
          if constexpr (DROP) {
            const std::uint32_t keep = bits[row * MaskTile::kOctets + chunk];
#pragma unroll
            for (int i = 0; i < 8; ++i) d[i] = keep >> i & 1 ? d[i] : 0.0f;
          }
          store_pack<8>(m.dgate.at(token, col), g);
          store_pack<8>(m.dup.at(token, col), u);
        }
        store_pack<8>(
            reinterpret_cast<__nv_bfloat16*>(tile_memory + (tile.at(row, chunk) - tile.base)), d);
      }
      // The tile is complete. Warps that are ahead write the other buffer, which all warps have
      // left.
      __syncthreads();
      multiply_into_dw<NR>(dw, tile, thin, inner * kTokens);
    }
    store_partial_dw<NR>(p, dw, column, column1);
  }
}

template <int NR>
void run(ThinArgs& p, const SwigluTensors& m, const ThinDropout* drop, const ThinCut& cut,
         CudaBackend& backend) {
  constexpr int kMostRows = ThinPlan::most_rows(NR, false);
  ThinScratch scratch = use_cut(p, cut, backend);
  auto go = [&]<int ROWS>() {
    launch("thin_swiglu",
           drop ? thin_swiglu_kernel<NR, ROWS, true> : thin_swiglu_kernel<NR, ROWS, false>,
           grid_of(p.n_column_slabs, p.n_row_slabs), dim3(kThreads), kSharedBytes<NR, ROWS>,
           backend.stream(), p, m, drop ? *drop : ThinDropout{});
  };
  cut.rows == kMostRows ? go.template operator()<kMostRows>()
                        : go.template operator()<kMostRows / 2>();
  add_partial_sums<NR, true>(p, backend.stream());
}

}  // namespace

void CudaLoraKernels::run_swiglu_backward(const ThinPlan& plan, const Tensor& dgate,
                                          const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                          const Tensor& up, const Tensor& ds,
                                          std::span<const ThinPart> parts,
                                          const InputDropout& drop) {
  check(packable(8, dy.cols(), dy, ds, dgate, dup, gate, up),
        "cuda thin swiglu_backward: rows must start at 16 bytes");
  ThinArgs p = thin_arguments(dy, ds, parts);
  const SwigluTensors m{matrix<bf16>(dgate), matrix<bf16>(dup), const_matrix<bf16>(gate),
                        const_matrix<bf16>(up)};
  const ThinCut cut = plan.cut_swiglu_backward(dy.rows());
  const ThinDropout masks = kept_dropout(plan, dy, drop, parts);
  if (drop.p > 0) p.dw_scale = masks.keep_scale;
  const ThinDropout* used = drop.p > 0 ? &masks : nullptr;
  plan.swiglu_backward() == 1 ? run<1>(p, m, used, cut, backend_)
                              : run<2>(p, m, used, cut, backend_);
}

}  // namespace lk
