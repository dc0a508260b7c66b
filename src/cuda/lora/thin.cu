// Products with a short inner dimension: y += S Bᵀ and dx += dS A, the way a LoRA update reaches
// its layer.
//
// Shapes     c (M,N) (+)= alpha a (M,K) op(b), K <= 128, all BF16; b (N,K) transposed or (K,N)
// Why own    the work is reading and writing c once; cuBLASLt reaches 62 % of bandwidth here (this
//            kernel 81 to 85 %), and it rounds the product to BF16 before it adds c. This kernel
//            adds in F32 and rounds once, and it takes any rank and stride.
// Plan       a block makes 128 x 128 of c with 8 warps of 32 x 64 each. Its parts of a, b and c
//            (when adding) travel into shared memory at once; K is padded with zeros to 64 or 128
//            columns there, and only ceil(K / 16) steps are multiplied. The sum returns through the
//            tile of c, so that global memory is read and written 16 bytes at a time. Unaligned
//            operands are fetched element by element.
// Bytes      c once in (when adding) and once out; a and b once per tile, from L2
// Limits     shared memory: three blocks per multiprocessor at K <= 64, two above
#include "cuda/lora/thin.h"
#include "cuda/mma.cuh"
#include "cuda/pack.cuh"

namespace lk {
namespace {

constexpr int kTile = 128, kThreads = 256;

struct ThinGemmArgs {
  Matrix<__nv_bfloat16> c;
  Matrix<const __nv_bfloat16> a, b;
  i64 m, n;
  int k;
  float alpha;
  bool accumulate, a_packs, b_packs, c_packs;  // packs: rows can be moved 16 bytes at a time
};

// Fetches valid_rows x valid_cols into the ROWS x COLS tile and zeroes the rest.
template <int ROWS, int COLS>
__device__ __forceinline__ void load_tile(SwizzledTile<COLS> tile, unsigned char* memory,
                                          const __nv_bfloat16* from, i64 ld, int valid_rows,
                                          int valid_cols, bool packs) {
  if (packs) {
    tile.template load_async<ROWS, kThreads>(from, ld, valid_rows, valid_cols);
    return;
  }
  for (int i = threadIdx.x; i < ROWS * COLS; i += kThreads) {
    int row = i / COLS, col = i % COLS;
    bool valid = row < valid_rows && col < valid_cols;
    auto* to = reinterpret_cast<__nv_bfloat16*>(memory + (tile.at(row, col / 8) - tile.base));
    to[col % 8] = valid ? from[row * ld + col] : from_float<__nv_bfloat16>(0.0f);
  }
}

template <int KP, bool TRANSPOSE_B>
__global__ void __launch_bounds__(kThreads)
    thin_gemm_kernel(const __grid_constant__ ThinGemmArgs p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kOperandBytes = kTile * KP * 2;
  unsigned char *a_memory = shared, *b_memory = shared + kOperandBytes;
  unsigned char* c_memory = b_memory + kOperandBytes;
  SwizzledTile<KP> a_tile{shared_address(a_memory)};
  SwizzledTile<TRANSPOSE_B ? KP : kTile> b_tile{shared_address(b_memory)};
  SwizzledTile<kTile> c_tile{shared_address(c_memory)};
  i64 m0 = static_cast<i64>(blockIdx.x) * kTile, n0 = static_cast<i64>(blockIdx.y) * kTile;
  int rows = static_cast<int>(min(p.m - m0, i64{kTile})),
      cols = static_cast<int>(min(p.n - n0, i64{kTile}));

  load_tile<kTile>(a_tile, a_memory, p.a.at(m0, 0), p.a.ld, rows, p.k, p.a_packs);
  if constexpr (TRANSPOSE_B)
    load_tile<kTile>(b_tile, b_memory, p.b.at(n0, 0), p.b.ld, cols, p.k, p.b_packs);
  else
    load_tile<KP>(b_tile, b_memory, p.b.at(0, n0), p.b.ld, p.k, cols, p.b_packs);
  if (p.accumulate)
    load_tile<kTile>(c_tile, c_memory, p.c.at(m0, n0), p.c.ld, rows, cols, p.c_packs);
  copy_async_commit();
  copy_async_wait();
  __syncthreads();

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int row0 = warp / 2 * 32, col0 = warp % 2 * 64;
  float sum[2][8][4] = {};
  for (int step = 0; step < (p.k + 15) / 16; ++step) {
    Fragment4 fa[2] = {fragment_a(a_tile, row0, step), fragment_a(a_tile, row0 + 16, step)};
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      Fragment4 fb;
      if constexpr (TRANSPOSE_B)
        fb = fragment_b_of_transpose(b_tile, col0 + 8 * n, step);
      else
        fb = fragment_b(b_tile, 16 * step, col0 / 16 + n / 2);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma(sum[i][n], fa[i], fb.r[0], fb.r[1]);
        mma(sum[i][n + 1], fa[i], fb.r[2], fb.r[3]);
      }
    }
  }
  // Each pair of columns is added and rounded in place by the thread that holds its sum.
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int row = row0 + 16 * i + g + 8 * half;
        auto* pair = reinterpret_cast<__nv_bfloat162*>(
            c_memory + (c_tile.at(row, col0 / 8 + n) - c_tile.base) + 4 * t);
        float low = p.alpha * sum[i][n][2 * half], high = p.alpha * sum[i][n][2 * half + 1];
        if (p.accumulate) {
          float2 old = __bfloat1622float2(*pair);
          low += old.x, high += old.y;
        }
        *pair = __floats2bfloat162_rn(low, high);
      }
  __syncthreads();

  for (int i = threadIdx.x; i < kTile * kTile / 8; i += kThreads) {
    int row = i / (kTile / 8), chunk = i % (kTile / 8);
    if (row >= rows || chunk * 8 >= cols) continue;
    unsigned char* from = c_memory + (c_tile.at(row, chunk) - c_tile.base);
    __nv_bfloat16* to = p.c.at(m0 + row, n0 + chunk * 8);
    if (p.c_packs) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int j = 0; j < 8 && chunk * 8 + j < cols; ++j)
        to[j] = reinterpret_cast<const __nv_bfloat16*>(from)[j];
    }
  }
}

}  // namespace

bool thin_gemm(const Gemm& g, const Tensor& c, float alpha, const Tensor& a, const Tensor& b,
               cudaStream_t stream) {
  if (g.k > 128 || g.transpose_a || g.in != DType::BF16 || g.out != DType::BF16) return false;
  ThinGemmArgs args{.c = matrix<bf16>(c),
                    .a = const_matrix<bf16>(a),
                    .b = const_matrix<bf16>(b),
                    .m = g.m,
                    .n = g.n,
                    .k = static_cast<int>(g.k),
                    .alpha = alpha,
                    .accumulate = g.accumulate,
                    .a_packs = packable(8, a.cols(), a),
                    .b_packs = packable(8, b.cols(), b),
                    .c_packs = packable(8, c.cols(), c)};
  auto go = [&]<int KP, bool TRANSPOSE_B>() {
    std::size_t shared = std::size_t{2} * kTile * (2 * KP + kTile);
    launch("thin_gemm", thin_gemm_kernel<KP, TRANSPOSE_B>,
           grid_of(ceil_div(g.m, kTile), ceil_div(g.n, kTile)), dim3(kThreads), shared, stream,
           args);
  };
  if (g.k <= 64)
    g.transpose_b ? go.template operator()<64, true>() : go.template operator()<64, false>();
  else
    g.transpose_b ? go.template operator()<128, true>() : go.template operator()<128, false>();
  return true;
}

}  // namespace lk
