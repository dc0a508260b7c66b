// Many adapters in one batch: rows of document i of y += scale (x Aᵀ) Bᵀ with the factors of
// variant[i].
//
// Shapes     x (T,K), y (T,N); a (R,K), b_t (R,N) of each variant, R up to max_rank
// Plan       two launches for all documents and variants. Tiles of 4 rows of one document (see Note
//            [Tiles of packed documents]); shrink: a warp sums 2 ranks of s = x Aᵀ for 4 rows;
//            expand: a thread owns a pack of columns of y for 4 rows. Nothing is copied to or from
//            the host, so both can be recorded while indices change.
// Bytes      A and Bᵀ once per tile (from memory once per variant, then L2), x once per 8 ranks, y
//            in and out; s (T,max_rank) F32 through L2
// Numbers    F32 sums in an order that depends on K and R alone: same bits alone and in a batch
// Limits     no tensor cores: long prompts read A and B from L2 for every 4 rows. Inference only.
#include "cuda/attention/tiles.cuh"
#include "cuda/lora/lora_kernels.h"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kRows = 4, kThreads = 128, kRanksPerWarp = 2;
constexpr int kRanksPerBlock = kThreads / 32 * kRanksPerWarp;

struct Documents {
  const int *offsets, *variants;
  const LoraEntry* table;
  int count;
};

// The rows and the factors of a block; false if there is nothing to do.
struct Work {
  LoraEntry factors;
  i64 row;
  int n_rows;
};
__device__ __forceinline__ bool find_work(const Documents& d, Work& work) {
  DocumentTile tile;
  if (!find_tile(d.offsets, d.count, kRows, blockIdx.x, tile)) return false;
  int variant = d.variants[tile.document];
  if (variant < 0) return false;
  work.factors = d.table[variant];
  work.row = static_cast<i64>(d.offsets[tile.document]) + tile.begin;
  work.n_rows = min(kRows, tile.length - tile.begin);
  return work.factors.rank > 0;
}

// s (T,max_rank) = x Aᵀ
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    lora_shrink_kernel(Matrix<float> s, Matrix<const T> x, int k, Documents documents) {
  Work work;
  if (!find_work(documents, work)) return;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int rank0 = blockIdx.y * kRanksPerBlock + warp * kRanksPerWarp;
  if (rank0 >= work.factors.rank) return;
  const T* a = static_cast<const T*>(work.factors.a);
  float sum[kRanksPerWarp][kRows] = {};
  for (int col = lane * N; col < k; col += 32 * N) {
    float av[kRanksPerWarp][N];
#pragma unroll
    for (int r = 0; r < kRanksPerWarp; ++r)
      load_pack<N>(a + static_cast<i64>(min(rank0 + r, work.factors.rank - 1)) * k + col, av[r]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float xv[N];
      load_pack<N>(x.at(work.row + min(i, work.n_rows - 1), col), xv);
#pragma unroll
      for (int r = 0; r < kRanksPerWarp; ++r)
#pragma unroll
        for (int j = 0; j < N; ++j) sum[r][i] = fmaf(av[r][j], xv[j], sum[r][i]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRanksPerWarp; ++r)
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float total = warp_sum(sum[r][i]);
      if (lane == 0 && i < work.n_rows && rank0 + r < work.factors.rank)
        *s.at(work.row + i, rank0 + r) = total;
    }
}

// y += scale s Bᵀ
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    lora_expand_kernel(Matrix<T> y, int n, Matrix<const float> s, Documents documents) {
  Work work;
  if (!find_work(documents, work)) return;
  int col = (blockIdx.y * kThreads + threadIdx.x) * N;
  if (col >= n) return;
  const T* b_t = static_cast<const T*>(work.factors.b_t);
  float sum[kRows][N] = {};
  for (int r = 0; r < work.factors.rank; ++r) {
    float b[N];
    load_pack<N>(b_t + static_cast<i64>(r) * n + col, b);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float f = *s.at(work.row + min(i, work.n_rows - 1), r);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[i][j] = fmaf(f, b[j], sum[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i >= work.n_rows) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) sum[i][j] *= work.factors.scale;
    write_pack<N>(y.at(work.row + i, col), sum[i], true);
  }
}

}  // namespace

void CudaLoraKernels::lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                                    const Segments& documents, const RowVariants& variants) {
  if (table.max_rank == 0 || documents.total() == 0) return;
  check(x.cols() <= INT32_MAX && y.cols() <= INT32_MAX, "cuda lora_segments: row too long");
  Tensor s = backend_.empty(Tag::Workspace, DType::F32, {x.rows(), table.max_rank});
  const Documents d{documents.offsets.data<std::int32_t>(), variants.device.data<std::int32_t>(),
                    reinterpret_cast<const LoraEntry*>(table.device.data<std::uint8_t>()),
                    static_cast<int>(documents.count())};
  const i64 tiles = tile_slots(documents.total(), documents.count(), kRows);
  const int k = static_cast<int>(x.cols()), n = static_cast<int>(y.cols());
  dispatch_device(x.dtype(), [&]<class T>() {
    using D = device_t<T>;
    constexpr int kPack = 16 / static_cast<int>(sizeof(T));
    auto shrink = [&]<int N>() {
      launch("lora_shrink", lora_shrink_kernel<D, N>,
             grid_of(tiles, ceil_div(table.max_rank, kRanksPerBlock)), dim3(kThreads), 0,
             backend_.stream(), matrix<float>(s), const_matrix<T>(x), k, d);
    };
    auto expand = [&]<int N>() {
      launch("lora_expand", lora_expand_kernel<D, N>,
             grid_of(tiles, ceil_div(n, static_cast<i64>(kThreads) * N)), dim3(kThreads), 0,
             backend_.stream(), matrix<T>(y), n, const_matrix<float>(s), d);
    };
    // Factors have allocations of their own, so they are aligned; their rows are if the widths are.
    packable(kPack, k, x) ? shrink.template operator()<kPack>() : shrink.template operator()<1>();
    packable(kPack, n, y) ? expand.template operator()<kPack>() : expand.template operator()<1>();
  });
}

}  // namespace lk
