// Frozen projections of at most 32 rows in BF16: decoding. Every weight is read once, so this runs
// at the speed of memory if enough loads are in flight.
//
// Shapes     y (M,N) = addend (M,N) + n (M,K) wᵀ, w (N,K), M <= 32, for up to three w; n is x or
//            rmsnorm(x); rows 16-byte aligned
// Plan       a block: 16 rows of w; its eight warps take turns along K, 64 columns each: a stage.
//            A warp copies its stages into shared memory of its own, two ahead of the one that it
//            multiplies, the first before the kernel's input is there; no warp waits for another.
//            A lane reads 8 neighbouring columns of two rows, which serve as tensor-core operands
//            as they are: which columns meet in which product is free as long as x is read the same
//            way. More rows of x cost more products, but no more bytes of w.
// Norm       each block norms a few rows for itself into shared memory, while its first weights are
//            on their way; more rows are normed by a kernel of their own, with the same bits
// Bytes      w once; x (N / 16) times from L1/L2; y once
// Numbers    F32 sums: a warp's columns in order, then the warps in order, then the addend, then
//            rounded once. The order depends on K alone: a row has the same bits for every M.
#include "cuda/linear_few.cuh"
#include "cuda/linear_few.h"
#include "cuda/mma.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

using Bf16 = __nv_bfloat16;
constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = kFewRows, kStages = 3;
constexpr int kColumns = 64, kTurn = kWarps * kColumns, kRowBytes = kColumns * 2;
constexpr int kStageBytes = kRows * kRowBytes, kRingBytes = kWarps * kStages * kStageBytes;
constexpr i64 kMostRows = 32;

// Offset of a chunk in a stage in shared memory. A row's eight chunks of 16 bytes are permuted, so
// that four chunks of two neighbouring rows lie in different banks.
__device__ __forceinline__ int stage_offset(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ ((row & 1) << 2) ^ (row >> 1 & 3)) << 4);
}

// Every block norms x for itself up to this many rows and bytes.
constexpr i64 kMostNormedRows = 4, kMostNormedBytes = 24 * 1024;
struct Norm {
  const Bf16* gain;
  float eps;
  Matrix<Bf16> normed;
};

// to (k) = rmsnorm(x), and `copy` too if it is not null; executed by a whole block.
__device__ __forceinline__ void norm_row(Bf16* to, Bf16* copy, const Bf16* x, const Norm& norm,
                                         int k) {
  float sum = 0.0f;
  for (int col = threadIdx.x * 8; col < k; col += kThreads * 8) {
    float v[8];
    load_pack<8>(x + col, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(v[i], v[i], sum);
  }
  const float r = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(k) + norm.eps);
  for (int col = threadIdx.x * 8; col < k; col += kThreads * 8) {
    float v[8], w[8];
    load_pack<8>(x + col, v);
    load_pack<8>(norm.gain + col, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * r * w[i];
    store_pack<8>(to + col, v);
    if (copy) store_pack<8>(copy + col, v);
  }
}

__global__ void __launch_bounds__(kThreads)
    linear_few_norm_kernel(Matrix<const Bf16> x, Norm norm, int k) {
  wait_for_previous();  // Note [Early launches]
  const i64 row = blockIdx.x;
  norm_row(norm.normed.at(row, 0), nullptr, x.at(row, 0), norm, k);
}

// Elements between normed rows in shared memory, chosen so that two rows lie in different banks.
__host__ __device__ constexpr int normed_pitch(int k) { return k + 32; }

// NT: number of groups of 8 rows of x.
template <int NT, bool NORMED>
__global__ void __launch_bounds__(kThreads)
    linear_few_bf16_kernel(FewParts<Bf16> parts, Matrix<const Bf16> x, int n_x, Norm norm, int k) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  i64 row0 = static_cast<i64>(blockIdx.x) * kRows;
  const FewPart<Bf16> p = parts.of(row0);
  row0 -= p.begin;
  const i64 n = p.end - p.begin;

  // Stage i of this warp: columns [(i * kWarps + warp) * kColumns, ... + kColumns). A lane copies
  // one chunk of every fourth row.
  unsigned char* ring = shared + warp * kStages * kStageBytes;
  const int chunk = lane % 8;
  const Bf16* from[kRows / 4];
#pragma unroll
  for (int i = 0; i < kRows / 4; ++i) from[i] = p.w.at(min(row0 + 4 * i + lane / 8, n - 1), 0);
  auto copy = [&](int stage) {
    const int col = (stage * kWarps + warp) * kColumns + chunk * 8;
    const std::uint32_t to = shared_address(ring) + stage % kStages * kStageBytes;
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i)
      copy_async_16(to + stage_offset(4 * i + lane / 8, chunk), from[i] + (col < k ? col : 0),
                    col < k);
    copy_async_commit();
  };
  const int n_stages = (k - warp * kColumns + kTurn - 1) / kTurn;  // 0 or less: none
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(i);
  wait_for_previous();  // Note [Early launches]

  const Bf16* rows = x.at(g, 0);
  i64 pitch = x.ld;
  if constexpr (NORMED) {
    Bf16* normed = reinterpret_cast<Bf16*>(shared + kRingBytes);
    for (int m = 0; m < n_x; ++m)
      norm_row(normed + m * normed_pitch(k), blockIdx.x == 0 ? norm.normed.at(m, 0) : nullptr,
               x.at(m, 0), norm, k);
    __syncthreads();
    rows = normed + g * normed_pitch(k), pitch = normed_pitch(k);
  }
  float sum[NT][4] = {};
#pragma unroll 1
  for (int stage = 0; stage < n_stages; ++stage) {
    const int col = (stage * kWarps + warp) * kColumns + t * 8;
    uint4 v[2][NT];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
        v[half][nt] = g + 8 * nt < n_x && col + 32 * half < k
                          ? *reinterpret_cast<const uint4*>(rows + 8 * nt * pitch + col + 32 * half)
                          : uint4{};
    copy_async_wait_but<kStages - 2>();
    __syncwarp();  // the stage has arrived, and nobody reads the one before any more
    copy(stage + kStages - 1);
    const unsigned char* w = ring + stage % kStages * kStageBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 low = *reinterpret_cast<const uint4*>(w + stage_offset(g, 4 * half + t)),
                  high = *reinterpret_cast<const uint4*>(w + stage_offset(g + 8, 4 * half + t));
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        mma(sum[nt], Fragment4{{low.x, high.x, low.y, high.y}}, v[half][nt].x, v[half][nt].y);
        mma(sum[nt], Fragment4{{low.z, high.z, low.w, high.w}}, v[half][nt].z, v[half][nt].w);
      }
    }
  }

  // The warps' sums are exchanged in the memory of the ring.
  copy_async_wait();
  __syncthreads();
  store_few<NT, kWarps>(p, reinterpret_cast<float*>(shared), sum, row0, n, n_x);
}

}  // namespace

bool can_norm_few_rows(const Tensor& x, const InputNorm& norm) {
  const Tensor &gain = norm.gain->values(), &normed = norm.normed;
  return x.dtype() == DType::BF16 && gain.dtype() == DType::BF16 &&
         packable(8, x.cols(), x, normed, gain);
}

void norm_few_rows(const Tensor& x, const InputNorm& norm, cudaStream_t stream) {
  launch_early("linear_few_norm", linear_few_norm_kernel, grid_of(x.rows()), dim3(kThreads), 0,
               stream, const_matrix<bf16>(x),
               Norm{pointer<bf16>(norm.gain->values()), static_cast<float>(norm.eps),
                    matrix<bf16>(norm.normed)},
               static_cast<int>(x.cols()));
}

bool linear_few_rows_bf16(const Tensor& x, const InputNorm* norm, std::span<const LinearPart> parts,
                          cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  FewParts<Bf16> few;
  if (M < 1 || M > kMostRows || K < 1 || K > INT32_MAX || !few_parts<bf16>(x, parts, kRows, few))
    return false;
  const int k = static_cast<int>(K);
  Matrix<const Bf16> input = const_matrix<bf16>(x);
  Norm few_norm{};
  bool joined = false;
  if (norm) {
    const Tensor &gain = norm->gain->values(), &normed = norm->normed;
    if (gain.dtype() != DType::BF16 || !packable(8, K, normed, gain)) return false;
    few_norm = {pointer<bf16>(gain), static_cast<float>(norm->eps), matrix<bf16>(normed)};
    joined = M <= kMostNormedRows && M * normed_pitch(k) * 2 <= kMostNormedBytes;
    if (!joined) {
      launch_early("linear_few_norm", linear_few_norm_kernel, grid_of(M), dim3(kThreads), 0, stream,
                   input, few_norm, k);
      input = const_matrix<bf16>(normed);
    }
  }
  const i64 shared_bytes = kRingBytes + (joined ? M * normed_pitch(k) * 2 : 0);
  auto go = [&]<int NT>() {
    launch_early("linear_few_bf16",
                 joined ? linear_few_bf16_kernel<NT, true> : linear_few_bf16_kernel<NT, false>,
                 grid_of(few.rows / kRows), dim3(kThreads), static_cast<std::size_t>(shared_bytes),
                 stream, few, input, static_cast<int>(M), few_norm, k);
  };
  if (M <= 8)
    go.template operator()<1>();
  else if (M <= 16)
    go.template operator()<2>();
  else
    go.template operator()<4>();
  return true;
}

}  // namespace lk
