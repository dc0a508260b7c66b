// The next token of each sequence, and the inputs of the step that takes it, without the host.
//
// Maths      id = the first of the largest logits; NaN counts as smaller than anything
// Shapes     logits (n,V) with a row stride, V <= 2^24; chosen (n) F32; ids, positions, cache_rows, key_ends (n)
//            I32, contiguous
// Plan       a block a row. Each thread keeps the first of the largest that it reads (sweep_row.cuh), then the
//            block compares; thread 0 writes the row's inputs
// Bytes      logits once: one processor reads 512 KiB in about 5 us
#include <climits>

#include "cuda/cache_kernels.h"
#include "cuda/reduce.cuh"
#include "cuda/sweep_row.cuh"

namespace lk {
namespace {

constexpr int kThreads = 1024;

struct Best {
  float logit;
  int id;
};
struct BestOp {
  __device__ __forceinline__ Best operator()(Best a, Best b) const {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id) ? a : b;
  }
  static __device__ __forceinline__ Best identity() { return {-INFINITY, INT_MAX}; }
};

struct NextRows {
  float* chosen;
  int *ids, *positions, *cache_rows, *key_ends;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    choose_kernel(NextRows next, Matrix<const T> logits, i64 vocab) {
  wait_for_previous();  // Note [Early launches]
  const int row = blockIdx.x;
  Best best = BestOp::identity();
  sweep_row(logits.at(row, 0), vocab, [&](auto width, const T* p, i64 col, i64) {
    constexpr int N = decltype(width)::value;
    float v[N];
    load_pack<N>(p, v);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (v[i] > best.logit) best = {v[i], static_cast<int>(col) + i};
  });
  best = block_reduce(best, BestOp{});
  if (threadIdx.x != 0) return;
  const bool finite = fabsf(best.logit) < INFINITY;
  next.chosen[row] = finite ? static_cast<float>(best.id) : NAN;
  next.ids[row] = finite ? best.id : 0;
  ++next.positions[row], ++next.cache_rows[row], ++next.key_ends[row];
}

}  // namespace

bool CudaCacheKernels::choose_next(const NextInputs& next, const Tensor& logits) {
  if (logits.cols() > i64{1} << 24 || logits.dtype() == DType::F64) return false;
  dispatch_device(logits.dtype(), [&]<class T>() {
    launch_early("choose_next", choose_kernel<device_t<T>>, grid_of(logits.rows()), dim3(kThreads),
                 0, backend_.stream(),
                 NextRows{next.chosen.data<float>(), next.ids.data<std::int32_t>(),
                          next.positions.data<std::int32_t>(), next.cache_rows.data<std::int32_t>(),
                          next.key_ends.data<std::int32_t>()},
                 const_matrix<T>(logits), logits.cols());
  });
  return true;
}

}  // namespace lk
