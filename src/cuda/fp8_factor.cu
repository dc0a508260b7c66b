// What lies beside a frozen matrix's E4M3 codes in a product: those of LoRA's factor, as pairs.
//
// Shapes     put: codes (N,K) U8 and scales (N) to rows that are further apart, K a multiple of 16.
//            factor: pairs (R, 3 S and zeros) of f (R,S) or (S,R) BF16; S, and R of (S,R), multiples
//            of 8
// Plan       put: 16 bytes a thread, four of them. A factor's largest magnitude by 64 blocks, each of
//            which leaves its own; whoever needs their largest reads all 64. Then a thread makes
//            eight numbers' pairs of one row.
// Bytes      put: 1 in, 1 out an element; factor: f twice in, its pairs out: it is small
// Numbers    the CPU's, bit for bit
#include "cuda/cuda_backend.h"
#include "cuda/fp8_codes.cuh"
#include "cuda/pack.cuh"
#include "cuda/quantised_kernels.h"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

using u32 = std::uint32_t;
constexpr int kThreads = 256, kPack = 8, kPieces = 4;

struct PutArgs {
  std::uint8_t* to;
  const std::uint8_t* from;
  float* to_scales;
  const float* from_scales;
  i64 ld;
  u32 rows, packs;  // packs of 16 codes a row
};

__global__ void __launch_bounds__(kThreads) put_kernel(const __grid_constant__ PutArgs p) {
  const i64 first = static_cast<i64>(blockIdx.x) * kThreads * kPieces + threadIdx.x;
  const i64 all = static_cast<i64>(p.rows) * p.packs;
  const auto* from = reinterpret_cast<const uint4*>(p.from);
  uint4 piece[kPieces];
#pragma unroll
  for (int u = 0; u < kPieces; ++u)
    if (const i64 i = first + u * kThreads; i < all) piece[u] = __ldcs(from + i);
#pragma unroll
  for (int u = 0; u < kPieces; ++u) {
    const i64 i = first + u * kThreads;
    if (i >= all) break;
    const i64 row = i / p.packs;
    reinterpret_cast<uint4*>(p.to + row * p.ld)[i - row * p.packs] = piece[u];
    if (i < p.rows) p.to_scales[i] = p.from_scales[i];
  }
}

struct FactorArgs {
  std::uint8_t* to;
  Matrix<const __nv_bfloat16> f;
  float* bounds;
  const float* scales;
  i64 ld;
  int rows, columns, width;  // R, S, and columns of `to`
};

// The largest magnitude of f / scale in each block's share.
template <bool TURNED>
__global__ void __launch_bounds__(kThreads) bounds_kernel(const __grid_constant__ FactorArgs p) {
  const int rows = TURNED ? p.columns : p.rows, packs = (TURNED ? p.rows : p.columns) / kPack;
  u32 most = 0;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < rows * packs; i += gridDim.x * kThreads) {
    const int row = i / packs, col = (i - row * packs) * kPack;
    float v[kPack];
    load_pack<kPack>(p.f.at(row, col), v);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const float scale = p.scales[TURNED ? col + k : row];
      most = max(most, __float_as_uint(__fdiv_rn(v[k], scale)) & 0x7fffffffu);
    }
  }
  most = block_reduce(most, MaxBits{});
  if (threadIdx.x == 0) p.bounds[blockIdx.x] = __uint_as_float(most);
}

// Neighbouring threads read what lies side by side: packs of a row, or rows of a pack.
template <bool TURNED>
__global__ void __launch_bounds__(kThreads) factor_kernel(const __grid_constant__ FactorArgs p) {
  const float inverse = __fdiv_rn(1.0f, pair_factor(p.bounds));
  const int packs = p.columns / kPack, pads = p.width / kPack - 3 * packs, all = packs + pads;
  const i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<i64>(p.rows) * all) return;
  const int row = static_cast<int>(TURNED ? i % p.rows : i / all),
            pack = static_cast<int>(TURNED ? i / p.rows : i % all);
  std::uint8_t* to = p.to + row * p.ld;
  if (pack >= packs) {
    reinterpret_cast<uint2*>(to)[2 * packs + pack] = make_uint2(0, 0);
    return;
  }
  const float scale = p.scales[row];
  float v[kPack];
  if constexpr (TURNED) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) v[k] = to_float(*p.f.at(pack * kPack + k, row));
  } else {
    load_pack<kPack>(p.f.at(row, pack * kPack), v);
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) v[k] = __fmul_rn(__fdiv_rn(v[k], scale), inverse);
  store_pairs(to + pack * kPack, p.columns, true, v);
}

}  // namespace

void CudaFp8Kernels::put(const Fp8Rows& to, const Fp8Rows& from) {
  const i64 N = from.codes.rows(), K = from.codes.cols();
  check(to.codes.shape() == from.codes.shape() && from.codes.contiguous() &&
            packable(16, K, to.codes, from.codes) && to.scales.numel() == N &&
            from.scales.numel() == N,
        "put: codes ", from.codes.shape(), " to ", to.codes.shape());
  const PutArgs args{.to = to.codes.data<std::uint8_t>(),
                     .from = from.codes.data<std::uint8_t>(),
                     .to_scales = to.scales.data<float>(),
                     .from_scales = from.scales.data<float>(),
                     .ld = to.codes.ld(),
                     .rows = static_cast<u32>(N),
                     .packs = static_cast<u32>(K / 16)};
  launch("fp8_put", put_kernel, grid_of(ceil_div(N * (K / 16), kThreads * kPieces)), dim3(kThreads),
         0, backend_.stream(), args);
}

void CudaFp8Kernels::quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                                     const Tensor& scales) {
  const i64 R = to.rows(), S = turned ? f.values.rows() : f.values.cols();
  check(f.values.shape() == (turned ? Shape{S, R} : Shape{R, S}) && S % kPack == 0 &&
            to.cols() >= 3 * S && packable(kPack, to.cols(), to) && scales.numel() == R &&
            packable(kPack, f.values.cols(), f.values) && f.values.numel() <= INT32_MAX,
        "quantise_factor: f ", f.values.shape(), " to ", to.shape());
  const FactorArgs args{.to = to.data<std::uint8_t>(),
                        .f = const_matrix<bf16>(f.values),
                        .bounds = f.bounds.data<float>(),
                        .scales = scales.data<float>(),
                        .ld = to.ld(),
                        .rows = static_cast<int>(R),
                        .columns = static_cast<int>(S),
                        .width = static_cast<int>(to.cols())};
  auto go = [&]<bool TURNED>() {
    launch("fp8_bounds", bounds_kernel<TURNED>, dim3(Fp8Thin::kBounds), dim3(kThreads), 0,
           backend_.stream(), args);
    launch("fp8_factor", factor_kernel<TURNED>,
           grid_of(ceil_div(R * (to.cols() / kPack - 2 * (S / kPack)), kThreads)), dim3(kThreads),
           0, backend_.stream(), args);
  };
  turned ? go.template operator()<true>() : go.template operator()<false>();
}

}  // namespace lk
