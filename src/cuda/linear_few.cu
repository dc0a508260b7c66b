// A frozen projection of at most 8 rows: decoding. Every weight is read once, so this runs at the
// speed of memory if enough loads are in flight.
//
// Shapes     y (M,N) = x (M,K) wᵀ, w (N,K), M <= 8; rows 16-byte aligned
// Plan       a warp: two rows of w, streamed past L1 in 16-byte loads, four of each row in flight
// per
//            lane (4 KiB a warp); x comes from L1, once per pair of rows
// Bytes      w once; x (N / 16) times from L1/L2; y once
// Numbers    F32 sums: each lane its columns in order, then a butterfly over the warp. The order
//            depends on K alone: a row has the same bits for every M.
// Limits     CUDA cores: past 8 rows tensor cores win
#include "cuda/linear_few.h"

#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kMost = 8, kThreads = 256, kRows = 2, kUnroll = 4;

template <class T, int M>
__global__ void __launch_bounds__(kThreads)
    linear_few_kernel(Matrix<T> y, Matrix<const T> x, Matrix<const T> w, i64 n, int k) {
  constexpr int N = 16 / static_cast<int>(sizeof(T)), kStep = 32 * N;
  int lane = threadIdx.x % 32;
  i64 row0 = (static_cast<i64>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kRows;
  if (row0 >= n) return;  // whole warps
  const T* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = w.at(min(row0 + r, n - 1), 0);
  uint4 raw[kUnroll][kRows];
  auto load = [&](int col0) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (col0 + u * kStep < k)
          raw[u][r] = __ldcs(reinterpret_cast<const uint4*>(rows[r] + col0 + u * kStep));
  };
  load(lane * N);
  wait_for_previous();  // Note [Early launches]
  float sum[kRows][M] = {};
  for (int col0 = lane * N; col0 < k; col0 += kStep * kUnroll) {
    if (col0 != lane * N) load(col0);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      int col = col0 + u * kStep;
      if (col >= k) break;
      float wv[kRows][N];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(&raw[u][r]);
#pragma unroll
        for (int j = 0; j < N; ++j) wv[r][j] = to_float(pack.v[j]);
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        float xv[N];
        load_pack<N>(x.at(m, col), xv);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int j = 0; j < N; ++j) sum[r][m] = fmaf(wv[r][j], xv[j], sum[r][m]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float total = warp_sum(sum[r][m]);
      if (lane == 0 && row0 + r < n) *y.at(m, row0 + r) = from_float<T>(total);
    }
}

}  // namespace

bool linear_few_rows(const Tensor& y, const Tensor& x, const Tensor& w, cudaStream_t stream) {
  const i64 M = y.rows(), N = w.rows(), K = w.cols();
  if (M < 1 || M > kMost || K < 1 || K > INT32_MAX) return false;
  if (x.dtype() != w.dtype() || y.dtype() != w.dtype()) return false;
  return dispatch_device(w.dtype(), [&]<class T>() {
    if (!packable(16 / static_cast<int>(sizeof(T)), K, x, w)) return false;
    auto go = [&]<int ROWS>() {
      launch_early("linear_few", linear_few_kernel<device_t<T>, ROWS>,
                   grid_of(ceil_div(N, kThreads / 32 * kRows)), dim3(kThreads), stream,
                   matrix<T>(y), const_matrix<T>(x), const_matrix<T>(w), N, static_cast<int>(K));
    };
    switch (M) {
      case 1:
        go.template operator()<1>();
        break;
      case 2:
        go.template operator()<2>();
        break;
      case 3:
        go.template operator()<3>();
        break;
      case 4:
        go.template operator()<4>();
        break;
      case 5:
        go.template operator()<5>();
        break;
      case 6:
        go.template operator()<6>();
        break;
      case 7:
        go.template operator()<7>();
        break;
      default:
        go.template operator()<8>();
        break;
    }
    return true;
  });
}

}  // namespace lk
