// Cross-entropy over a vocabulary, in place; and the sum of a vector.
//
// Maths      lse = log sum exp(l),  q = (1 - smoothing) onehot(target) + smoothing / V,
//            loss = lse - q·l,  dl = scale * (exp(l - lse) - q)
// Shapes     logits (n,V) with a row stride, overwritten by their gradient; targets (n) I32; losses
//            (n) F32
// Plan       one block per row (V up to 256 k and more). First sweep: each thread keeps a running
//            maximum and a sum scaled to it (with smoothing also the plain sum of l), then the
//            block combines them in a fixed order. Second sweep: the gradient.
// Bytes      logits once in and once out: the first sweep keeps what it read in shared memory, as
//            much of the row as fits next to another block's (57 k BF16 logits on Hopper); the
//            second reads the rest again, mostly from L2
#include "cuda/cuda_backend.h"
#include "cuda/mma.cuh"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sweep_row.cuh"

namespace lk {
namespace {

// Exponentials cost more than the bytes here, so the special-function unit computes them to base 2
// (2 ulp): exp(x - m) = 2^((x - m) log2e).
constexpr float kLog2e = 1.4426950408889634f;

// A maximum and the sum of exp(x - maximum) over what has been seen so far.
struct MaxSum {
  float max, sum;
};
struct MaxSumOp {
  __device__ __forceinline__ MaxSum operator()(MaxSum a, MaxSum b) const {
    float max = fmaxf(a.max, b.max);
    if (max == -INFINITY) return {max, a.sum + b.sum};  // nothing seen: 0, unless it was NaN
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
  }
  static __device__ __forceinline__ MaxSum identity() { return {-INFINITY, 0.0f}; }
};

// Without kSmooth `smoothing` is not looked at.
template <class T, bool kSmooth>
__global__ void __launch_bounds__(1024)
    cross_entropy_kernel(float* losses, Matrix<T> logits, const int* targets, i64 vocab,
                         bool gradient, float scale, const float* factor, float smoothing,
                         int n_cached) {
  extern __shared__ __align__(16) unsigned char cross_entropy_shared[];
  auto* cache = reinterpret_cast<Pack<T, 16 / sizeof(T)>*>(cross_entropy_shared);
  i64 row = blockIdx.x;
  T* l = logits.at(row, 0);
  i64 target = targets[row];
  if (target == kNoTarget) {  // uniform over the block
    if (threadIdx.x == 0) losses[row] = 0.0f;
    if (gradient)
      for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) l[i] = T(0.0f);
    return;
  }
  if (factor) scale *= *factor;

  MaxSum mine = MaxSumOp::identity();
  float plain = 0.0f;  // this thread's share of the sum of l
  sweep_row(l, vocab, [&](auto width, const T* p, i64, i64 pack) {
    constexpr int N = decltype(width)::value;
    auto raw = *reinterpret_cast<const Pack<T, N>*>(p);
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = to_float(raw.v[i]);
    if constexpr (N > 1)
      if (pack < n_cached) cache[pack] = raw;
    float max = mine.max;
#pragma unroll
    for (int i = 0; i < N; ++i) max = fmaxf(max, v[i]);
    float offset = max == -INFINITY ? 0.0f : max;
    float sum = max == mine.max ? mine.sum : mine.sum * exp2_fast((mine.max - offset) * kLog2e);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp2_fast((v[i] - offset) * kLog2e);
    mine = {max, sum};
    if constexpr (kSmooth) {
#pragma unroll
      for (int i = 0; i < N; ++i) plain += v[i];
    }
  });
  // fmaxf drops a NaN but the sum keeps it: a NaN logit makes a NaN loss.
  MaxSum all = block_reduce(mine, MaxSumOp{});
  float log_sum = logf(all.sum), lse = all.max + log_sum;
  bool in_range = 0 <= target && target < vocab;
  const float off = kSmooth ? smoothing / static_cast<float>(vocab) : 0.0f;  // q of each token
  const float on = kSmooth ? 1.0f - smoothing : 1.0f;  // what the target has on top of it
  float mean = 0.0f;
  if constexpr (kSmooth) mean = block_sum(plain) / static_cast<float>(vocab);
  // max - l[target] comes first: exact where both are large, and small when the target is likely.
  if (threadIdx.x == 0) {
    float above = in_range ? all.max - to_float(l[target]) : __int_as_float(0x7fc00000);
    if constexpr (kSmooth) above = on * above + smoothing * (all.max - mean);
    losses[row] = above + log_sum;
  }
  if (!gradient) return;
  __syncthreads();  // l[target] has been read: now the row may change
  sweep_row(l, vocab, [&](auto width, T* p, i64 col, i64 pack) {
    constexpr int N = decltype(width)::value;
    float v[N];
    bool cached = false;
    if constexpr (N > 1) {
      cached = pack < n_cached;
      if (cached) load_pack<N>(cache[pack].v, v);
    }
    if (!cached) load_pack<N>(p, v);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] = scale * exp2_fast((v[i] - lse) * kLog2e);
      if constexpr (kSmooth) v[i] -= scale * off;
    }
    if (i64 at = target - col; 0 <= at && at < N) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (i == at) v[i] -= kSmooth ? scale * on : scale;
    }
    store_pack<N>(p, v);
  });
}

// ---- sum ----
constexpr int kSumThreads = 512;
constexpr i64 kSumChunk = 8 * kSumThreads;  // elements per block of the first pass

// partial[b] = sum of chunk b
__global__ void __launch_bounds__(kSumThreads)
    sum_chunks_kernel(float* partial, const float* x, i64 n) {
  i64 begin = blockIdx.x * kSumChunk, end = min(n, begin + kSumChunk);
  float sum = 0.0f;
  for (i64 i = begin + threadIdx.x; i < end; i += kSumThreads) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out (+)= alpha * sum(x), one block
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(float* out, const float* x, i64 n, float alpha, bool accumulate) {
  float sum = 0.0f;
  for (i64 i = threadIdx.x; i < n; i += kSumThreads) sum += x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = accumulate ? *out + alpha * sum : alpha * sum;
}

}  // namespace

void CudaBackend::cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                                bool gradient, double scale, const Tensor& factor,
                                double smoothing) {
  check(smoothing >= 0 && smoothing < 1, "cross_entropy: smoothing ", smoothing);
  unsigned threads = 128;
  while (threads < 1024 && threads * 16 < logits.cols()) threads *= 2;
  int shared = 0;
  cuda_check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device_),
             "reading the shared memory's size");
  i64 packs = logits.cols() * static_cast<i64>(dtype_size(logits.dtype())) / 16;
  // Half of a multiprocessor's memory, so that two rows overlap; 2 KiB are for the system and the
  // reductions. Without a gradient nothing is read twice.
  int n_cached = gradient ? static_cast<int>(std::min<i64>(packs, (shared / 2 - 2048) / 16)) : 0;
  dispatch_device(logits.dtype(), [&]<class T>() {
    auto* kernel = smoothing > 0 ? cross_entropy_kernel<device_t<T>, true>
                                 : cross_entropy_kernel<device_t<T>, false>;
    launch("cross_entropy", kernel, grid_of(logits.rows()), dim3(threads),
           std::size_t{16} * static_cast<std::size_t>(n_cached), stream(), losses.data<float>(),
           matrix<T>(logits), targets.data<std::int32_t>(), logits.cols(), gradient,
           static_cast<float>(scale), factor.defined() ? factor.data<float>() : nullptr,
           static_cast<float>(smoothing), n_cached);
  });
}

void CudaBackend::sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) {
  check(x.contiguous(), "cuda sum: needs contiguous values");
  i64 n = x.numel();
  const float* values = x.data<float>();
  Tensor partial;
  if (n > kSumChunk) {
    i64 chunks = ceil_div(n, kSumChunk);
    partial = empty(Tag::Workspace, DType::F32, {chunks});
    launch("sum_chunks", sum_chunks_kernel, grid_of(chunks), dim3(kSumThreads), 0, stream(),
           partial.data<float>(), values, n);
    values = partial.data<float>(), n = chunks;
  }
  launch("sum", sum_kernel, dim3(1), dim3(kSumThreads), 0, stream(), out.data<float>(), values, n,
         alpha, mode == GradMode::Add);
}

}  // namespace lk
