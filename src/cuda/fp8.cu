// Products of E4M3 codes: activations rounded row by row, codes transposed, and cuBLASLt's products
// with a scale for each row and column. Note [FP8 products] in tensor/fp8_product.h has the algebra.
//
// Shapes     codes (T,K) U8 and scales (T) of x (T,K) BF16, rows `ld` apart; K a multiple of 8
// Plan       quantise: a block of 256 threads takes a row and keeps it in registers, 16 bytes a load,
//            between finding its largest magnitude and rounding it; rows beyond 24,576 columns are
//            read a second time, from L2. The columns' scales stay in L1, which x passes by.
//            transpose: 128 x 128 codes through 16 KiB of shared memory, as words of four. Four
//            words of four rows become four words of four columns in registers; words lie permuted,
//            so that neither side waits for a bank.
// Bytes      quantise: 2 in, 1 out an element; transpose: 1 in, 1 out
//            beside them, pairs of codes of a few columns more (fp8_codes.cuh), whose numbers are read
//            twice
// Numbers    the CPU's, bit for bit: the largest magnitude is the largest of the numbers' bits, which
//            a NaN wins; one rounding for the column's scale, one for 1 / scale, one for the code
#include "cuda/cuda_backend.h"
#include "cuda/fp8_codes.cuh"
#include "cuda/pack.cuh"
#include "cuda/quantised_kernels.h"
#include "cuda/reduce.cuh"
#include "tensor/fp8_probe.h"

namespace lk {
namespace {

using u32 = std::uint32_t;
constexpr int kThreads = 256, kPack = 8, kTile = 128;
constexpr int kMostParts = static_cast<int>(Fp8Kernels::kMostColumns);

// Scales of columns: part p has those from begin[p] on.
struct ColumnScales {
  const float* scales[kMostParts];
  int begin[kMostParts];
  int count;

  // Those of the pack that starts at column `col`.
  __device__ __forceinline__ void load(int col, float (&s)[kPack]) const {
    const float* from = scales[0] + col;
#pragma unroll
    for (int p = 1; p < kMostParts; ++p)
      if (p < count && col >= begin[p]) from = scales[p] + (col - begin[p]);
    const float4 low = __ldg(reinterpret_cast<const float4*>(from)),
                 high = __ldg(reinterpret_cast<const float4*>(from) + 1);
    s[0] = low.x, s[1] = low.y, s[2] = low.z, s[3] = low.w;
    s[4] = high.x, s[5] = high.y, s[6] = high.z, s[7] = high.w;
  }
};

template <bool SCALED>
__device__ __forceinline__ void values_of(const uint4& raw, int col, const ColumnScales& columns,
                                          float (&v)[kPack]) {
  unpack_bf16(raw, v);
  if constexpr (SCALED) {
    float s[kPack];
    columns.load(col, s);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = __fmul_rn(v[i], s[i]);
  }
}

__device__ __forceinline__ u32 largest_bits(const float (&v)[kPack], u32 most) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
  return most;
}

// Numbers (T, columns) beside x, and the columns of codes that they take with the zeros behind.
struct ThinSide {
  Matrix<const __nv_bfloat16> values;
  const float* bounds;
  int columns, width;
};

// PACKS: how many a thread keeps; 0: none, the row is read twice.
template <int PACKS, bool SCALED>
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(std::uint8_t* __restrict__ codes, float* __restrict__ scales,
                    Matrix<const __nv_bfloat16> x, int cols, ColumnScales columns, ThinSide thin) {
  const i64 row = blockIdx.x;
  const int packs = cols / kPack;
  const auto* from = reinterpret_cast<const uint4*>(x.at(row, 0));
  uint4 kept[PACKS > 0 ? PACKS : 1];
  u32 most = 0;
  auto look = [&](const uint4& raw, int pack) {
    float v[kPack];
    values_of<SCALED>(raw, pack * kPack, columns, v);
    most = largest_bits(v, most);
  };
  if constexpr (PACKS > 0) {
#pragma unroll
    for (int u = 0; u < PACKS; ++u)
      if (const int pack = threadIdx.x + u * kThreads; pack < packs) kept[u] = __ldcs(from + pack);
#pragma unroll
    for (int u = 0; u < PACKS; ++u)
      if (const int pack = threadIdx.x + u * kThreads; pack < packs) look(kept[u], pack);
  } else {
    for (int pack = threadIdx.x; pack < packs; pack += kThreads) look(from[pack], pack);
  }
  const float g = thin.width > 0 ? pair_factor(thin.bounds) : 0.0f;
  auto thin_values = [&](int pack, float(&v)[kPack]) {
    load_pack<kPack>(thin.values.at(row, pack * kPack), v);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = __fmul_rn(v[i], g);
  };
  for (int pack = threadIdx.x; pack < thin.columns / kPack; pack += kThreads) {
    float v[kPack];
    thin_values(pack, v);
    most = largest_bits(v, most);
  }
  const float amax = __uint_as_float(block_reduce(most, MaxBits{}));
  const bool none = amax < kSmallestE4m3Row;  // false for a NaN
  const float inverse = none ? 1.0f : __fdiv_rn(448.0f, amax);
  if (threadIdx.x == 0) scales[row] = none ? 1.0f : __fdiv_rn(amax, 448.0f);
  auto* to = reinterpret_cast<uint2*>(codes + row * (cols + thin.width));
  auto put = [&](const uint4& raw, int pack) {
    float v[kPack];
    values_of<SCALED>(raw, pack * kPack, columns, v);
#pragma unroll
    for (int i = 0; i < kPack; ++i) v[i] = __fmul_rn(v[i], inverse);
    to[pack] = codes_of(v);
  };
  if constexpr (PACKS > 0) {
#pragma unroll
    for (int u = 0; u < PACKS; ++u)
      if (const int pack = threadIdx.x + u * kThreads; pack < packs) put(kept[u], pack);
  } else {
    for (int pack = threadIdx.x; pack < packs; pack += kThreads) put(from[pack], pack);
  }
  for (int pack = threadIdx.x; pack < thin.width / kPack; pack += kThreads) {
    if (pack < thin.columns / kPack) {
      float v[kPack];
      thin_values(pack, v);
#pragma unroll
      for (int i = 0; i < kPack; ++i) v[i] = __fmul_rn(v[i], inverse);
      store_pairs(reinterpret_cast<std::uint8_t*>(to + packs + pack), thin.columns, false, v);
    } else if (pack >= 3 * (thin.columns / kPack)) {
      to[packs + pack] = make_uint2(0, 0);
    }
  }
}

// Block (x, y): rows [128 x, ...) and columns [128 y, ...) of codes (N,K). Word w of a row in the tile
// lies at w ^ (row / 4).
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(std::uint8_t* __restrict__ to, i64 ld, float* __restrict__ ones,
                     const std::uint8_t* __restrict__ codes, int N, int K) {
  __shared__ u32 tile[kTile][kTile / 4];
  const int n0 = blockIdx.x * kTile, k0 = blockIdx.y * kTile;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32, kGroups = kTile / 4 / kWarps;
  u32 in[kGroups][4] = {};
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int n = n0 + 4 * (warp + kWarps * g), k = k0 + 4 * lane;
    if (n < N && k < K)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        in[g][j] = __ldcs(reinterpret_cast<const u32*>(codes + static_cast<i64>(n + j) * K + k));
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const u32(&w)[4] = in[g];
    const u32 low01 = __byte_perm(w[0], w[1], 0x5140), low23 = __byte_perm(w[2], w[3], 0x5140),
              high01 = __byte_perm(w[0], w[1], 0x7362), high23 = __byte_perm(w[2], w[3], 0x7362);
    const int at = (warp + kWarps * g) ^ lane;
    tile[4 * lane + 0][at] = __byte_perm(low01, low23, 0x5410);
    tile[4 * lane + 1][at] = __byte_perm(low01, low23, 0x7632);
    tile[4 * lane + 2][at] = __byte_perm(high01, high23, 0x5410);
    tile[4 * lane + 3][at] = __byte_perm(high01, high23, 0x7632);
  }
  __syncthreads();
  for (int row = warp; row < kTile; row += kWarps) {
    const int k = k0 + row, n = n0 + 4 * lane;
    if (k < K && n < N)
      *reinterpret_cast<u32*>(to + static_cast<i64>(k) * ld + n) = tile[row][lane ^ (row / 4)];
  }
  if (blockIdx.x == 0 && threadIdx.x < kTile && k0 + threadIdx.x < K) ones[k0 + threadIdx.x] = 1.0f;
}

bool aligned16(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.raw()) % 16 == 0; }

}  // namespace

void CudaFp8Kernels::quantise_rows(const Fp8Rows& to, const Tensor& x,
                                   std::span<const Tensor> columns, const Fp8Thin& beside) {
  const i64 T = x.rows(), K = x.cols();
  check(x.dtype() == DType::BF16 && packable(kPack, K, x) && aligned16(x) && K <= INT32_MAX,
        "quantise_rows: x ", x.shape(), " of rows ", x.ld(), " apart");
  const i64 S = beside.values ? beside.values.cols() : 0, width = to.codes.cols() - K;
  check(to.codes.rows() == T && width >= 3 * S && (width == 0 || S > 0) && width % kPack == 0 &&
            to.codes.contiguous() && to.scales.numel() == T && columns.size() <= kMostColumns,
        "quantise_rows: codes ", to.codes.shape(), " of x ", x.shape());
  check(S == 0 || (beside.values.rows() == T && packable(kPack, S, beside.values)),
        "quantise_rows: values ", beside.values.shape(), " beside x ", x.shape());
  ThinSide thin{};
  if (S > 0)
    thin = {const_matrix<bf16>(beside.values), beside.bounds.data<float>(), static_cast<int>(S),
            static_cast<int>(width)};
  ColumnScales scales{};
  i64 begin = 0;
  for (const Tensor& part : columns) {
    check(part.numel() % kPack == 0 && aligned16(part), "quantise_rows: scales of columns");
    scales.scales[scales.count] = part.data<float>();
    scales.begin[scales.count++] = static_cast<int>(begin);
    begin += part.numel();
  }
  check(columns.empty() || begin == K, "quantise_rows: scales of ", begin, " columns for ", K);
  auto go = [&]<int PACKS>() {
    auto kernel = columns.empty() ? quantise_kernel<PACKS, false> : quantise_kernel<PACKS, true>;
    launch("fp8_quantise", kernel, grid_of(T), dim3(kThreads), 0, backend_.stream(),
           to.codes.data<std::uint8_t>(), to.scales.data<float>(), const_matrix<bf16>(x),
           static_cast<int>(K), scales, thin);
  };
  const i64 packs = ceil_div(K / kPack, kThreads);
  packs <= 1    ? go.template operator()<1>()
  : packs <= 2  ? go.template operator()<2>()
  : packs <= 3  ? go.template operator()<3>()
  : packs <= 4  ? go.template operator()<4>()
  : packs <= 6  ? go.template operator()<6>()
  : packs <= 8  ? go.template operator()<8>()
  : packs <= 12 ? go.template operator()<12>()
                : go.template operator()<0>();
}

void CudaFp8Kernels::transpose(const Fp8Rows& to, const Tensor& codes) {
  const i64 N = codes.rows(), K = codes.cols();
  check(to.codes.shape() == Shape{K, N} && to.scales.numel() == K && codes.contiguous() &&
            N % 4 == 0 && K % 4 == 0 && to.codes.ld() % 4 == 0 && aligned16(codes) &&
            reinterpret_cast<std::uintptr_t>(to.codes.raw()) % 4 == 0,
        "transpose: codes ", codes.shape(), " to ", to.codes.shape());
  launch("fp8_transpose", transpose_kernel, grid_of(ceil_div(N, kTile), ceil_div(K, kTile)),
         dim3(kThreads), 0, backend_.stream(), to.codes.data<std::uint8_t>(), to.codes.ld(),
         to.scales.data<float>(), codes.data<std::uint8_t>(), static_cast<int>(N),
         static_cast<int>(K));
}

bool CudaBackend::multiply_fp8(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                               const Tensor& addend) {
  check(!addend || mode == GradMode::Write, "multiply: an addend and an accumulating mode");
  check(y.rows() == a.codes.rows() && y.cols() == b.codes.rows() &&
            a.codes.cols() == b.codes.cols() && a.scales.numel() == y.rows() &&
            b.scales.numel() == y.cols(),
        "multiply: codes ", a.codes.shape(), " times ", b.codes.shape(), "ᵀ into ", y.shape());
  const Gemm g{.transpose_b = true,
               .accumulate = mode == GradMode::Add || addend,
               .in = DType::U8,
               .out = y.dtype(),
               .m = y.rows(),
               .n = y.cols(),
               .k = a.codes.cols(),
               .lda = a.codes.ld(),
               .ldb = b.codes.ld(),
               .ldc = y.ld(),
               .ld_addend = addend ? addend.ld() : 0};
  return blas_.run(g, y.raw(), 1.0f, a.codes.raw(), b.codes.raw(), addend ? addend.raw() : nullptr,
                   blas_workspace(), stream(), {a.scales.data<float>(), b.scales.data<float>()});
}

Fp8Kernels* CudaQuantisedKernels::fp8_kernels() {
  if (!fp8_fault_)
    fp8_fault_ = backend_.generation() < 9
                     ? "its tensor cores have no products of FP8 with a scale for each row"
                     : probe_fp8(backend_, fp8_);
  return fp8_fault_->empty() ? &fp8_ : nullptr;
}

std::string CudaQuantisedKernels::why_no_fp8() {
  fp8_kernels();
  return *fp8_fault_;
}

}  // namespace lk
