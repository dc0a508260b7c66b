// Frozen projections of at most 32 rows in BF16: decoding. Every weight is read once, so this runs
// at the speed of memory if enough loads are in flight.
//
// Shapes     y (M,N) = addend (M,N) + n (M,K) wᵀ, w (N,K), M <= 32, for up to three w; n is x,
//            rmsnorm(x) or act(gate) * x; rows 16-byte aligned
// Plan       a block: 16 rows of w; its eight warps take turns along K, 64 columns each: a stage.
//            A warp copies its stages into shared memory of its own, two ahead of the one that it
//            multiplies, the first before the kernel's input is there; no warp waits for another.
//            A lane reads 8 neighbouring columns of two rows, which serve as tensor-core operands
//            as they are: which columns meet in which product is free as long as x is read the same
//            way. More rows of x cost more products, but no more bytes of w.
// Input      each block makes n of a few rows for itself in shared memory, while its first weights are
//            on their way; more rows are made by a kernel of their own, with the same bits
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

// Every block makes its input for itself up to this many rows and bytes.
constexpr i64 kMostMadeRows = 4, kMostMadeBytes = 32 * 1024;

// to (k) = act(gate) * x of row m, and `copy` too if it is not null; executed by block `part` of `parts`.
__device__ __forceinline__ void gate_row(Bf16* to, Bf16* copy, const Matrix<const Bf16>& x, i64 m,
                                         const RowInput& input, int k, int part, int parts) {
  constexpr int kAhead = 4;  // packs that a thread has on their way
  const int step = parts * kThreads * 8;
  for (int begin = (part * kThreads + threadIdx.x) * 8; begin < k; begin += kAhead * step) {
    float v[kAhead][8], gate[kAhead][8];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int col = begin + i * step < k ? begin + i * step : begin;
      load_pack<8>(x.at(m, col), v[i]);
      load_pack<8>(input.gate.at(m, col), gate[i]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int col = begin + i * step;
      if (col >= k) break;
#pragma unroll
      for (int j = 0; j < 8; ++j) v[i][j] = input.gated(gate[i][j], v[i][j]);
      store_pack<8>(to + col, v[i]);
      if (copy) store_pack<8>(copy + col, v[i]);
    }
  }
}

// to (k) = rmsnorm(x), and `copy` too if it is not null; executed by a whole block. A thread keeps its first packs;
// of longer rows it reads the others twice.
__device__ __forceinline__ void norm_row(Bf16* to, Bf16* copy, const Bf16* x, const RowInput& input,
                                         int k) {
  constexpr int kKept = 2, kStep = kThreads * 8;
  uint4 kept[kKept]{}, kept_gain[kKept]{};
  const int first = threadIdx.x * 8;
#pragma unroll
  for (int j = 0; j < kKept; ++j)
    if (const int col = first + j * kStep; col < k) {
      kept[j] = *reinterpret_cast<const uint4*>(x + col);
      kept_gain[j] = *reinterpret_cast<const uint4*>(input.gain + col);
    }
  float sum = 0.0f;
  const auto square = [&](const uint4& raw) {
    float v[8];
    unpack_bf16(raw, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(v[i], v[i], sum);
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) square(kept[j]);
  for (int col = first + kKept * kStep; col < k; col += kStep)
    square(*reinterpret_cast<const uint4*>(x + col));
  const float r = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(k) + input.eps);
  const auto norm = [&](int col, const uint4& raw, const uint4& gain) {
    float v[8], w[8];
    unpack_bf16(raw, v), unpack_bf16(gain, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = v[i] * r * w[i];
    store_pack<8>(to + col, v);
    if (copy) store_pack<8>(copy + col, v);
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j)
    if (const int col = first + j * kStep; col < k) norm(col, kept[j], kept_gain[j]);
  for (int col = first + kKept * kStep; col < k; col += kStep)
    norm(col, *reinterpret_cast<const uint4*>(x + col),
         *reinterpret_cast<const uint4*>(input.gain + col));
}

// A row is normed by one block and gated by several.
__global__ void __launch_bounds__(kThreads)
    make_few_rows_kernel(Matrix<const Bf16> x, RowInput input, int k) {
  wait_for_previous();  // Note [Early launches]
  const i64 m = blockIdx.x;
  if (input.gain)
    norm_row(input.made.at(m, 0), nullptr, x.at(m, 0), input, k);
  else
    gate_row(input.made.at(m, 0), nullptr, x, m, input, k, blockIdx.y, gridDim.y);
}

// Elements between made rows in shared memory, chosen so that two rows lie in different banks.
__host__ __device__ constexpr int made_pitch(int k) { return k + 32; }

// NT: number of groups of 8 rows of x.
template <int NT, bool MAKES>
__global__ void __launch_bounds__(kThreads)
    linear_few_bf16_kernel(FewParts<Bf16> parts, Matrix<const Bf16> x, int n_x, RowInput input,
                           int k) {
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
  // The norm's gain is asked for first: behind the weights it would be the last to arrive.
  if (MAKES && input.gain)
    for (int col = threadIdx.x * 64; col < k; col += kThreads * 64) prefetch_l2(input.gain + col);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(i);
  wait_for_previous();  // Note [Early launches]

  const Bf16* rows = x.at(g, 0);
  i64 pitch = x.ld;
  if constexpr (MAKES) {
    Bf16* made = reinterpret_cast<Bf16*>(shared + kRingBytes);
    for (int m = 0; m < n_x; ++m) {
      Bf16 *to = made + m * made_pitch(k), *copy = blockIdx.x == 0 ? input.made.at(m, 0) : nullptr;
      if (input.gain)
        norm_row(to, copy, x.at(m, 0), input, k);
      else
        gate_row(to, copy, x, m, input, k, 0, 1);
    }
    __syncthreads();
    rows = made + g * made_pitch(k), pitch = made_pitch(k);
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

bool row_input(const Tensor& x, const MadeInput* input, RowInput& made) {
  made = {};
  if (!input) return true;
  const Tensor& other = input->gate ? input->gate : input->gain->values();
  if (x.dtype() != DType::BF16 || other.dtype() != DType::BF16 || input->act == Activation::Relu ||
      !packable(8, x.cols(), x, input->made, other))
    return false;
  made.made = matrix<bf16>(input->made);
  if (input->gate)
    made.gate = const_matrix<bf16>(other), made.gelu = input->act == Activation::Gelu;
  else
    made.gain = pointer<bf16>(other), made.eps = static_cast<float>(input->eps);
  return true;
}

void make_few_rows(const Tensor& x, const RowInput& input, cudaStream_t stream) {
  const i64 blocks = input.gain ? 1 : ceil_div(x.cols(), kThreads * 8);  // of a row
  launch_early("make_few_rows", make_few_rows_kernel, grid_of(x.rows(), blocks), dim3(kThreads), 0,
               stream, const_matrix<bf16>(x), input, static_cast<int>(x.cols()));
}

bool linear_few_rows_bf16(const Tensor& x, const MadeInput* input,
                          std::span<const LinearPart> parts, cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  FewParts<Bf16> few;
  RowInput how{};
  if (M < 1 || M > kMostRows || K < 1 || K > INT32_MAX || !few_parts<bf16>(x, parts, kRows, few) ||
      !row_input(x, input, how))
    return false;
  const int k = static_cast<int>(K);
  Matrix<const Bf16> rows = const_matrix<bf16>(x);
  const bool makes = input && M <= kMostMadeRows &&
                     M * made_pitch(k) * static_cast<i64>(sizeof(Bf16)) <= kMostMadeBytes;
  if (input && !makes) {
    make_few_rows(x, how, stream);
    rows = const_matrix<bf16>(input->made);
  }
  const i64 shared_bytes = kRingBytes + (makes ? M * made_pitch(k) * 2 : 0);
  auto go = [&]<int NT>() {
    launch_early("linear_few_bf16",
                 makes ? linear_few_bf16_kernel<NT, true> : linear_few_bf16_kernel<NT, false>,
                 grid_of(few.rows / kRows), dim3(kThreads), static_cast<std::size_t>(shared_bytes),
                 stream, few, rows, static_cast<int>(M), how, k);
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
