// Frozen projections of at most 8 rows: decoding. Every weight is read once, so this runs at the
// speed of memory if enough loads are in flight.
//
// Shapes     y (M,N) = addend (M,N) + x (M,K) wᵀ, w (N,K), M <= 8, for up to three w; rows 16-byte
//            aligned
// Plan       a warp: two rows of w, streamed past L1 in 16-byte loads, four of each row in flight
// per
//            lane (4 KiB a warp); x comes from L1, once per pair of rows
// Bytes      w once; x (N / 16) times from L1/L2; y once
// Numbers    F32 sums: each lane its columns in order, then a butterfly over the warp. The order
//            depends on K alone: a row has the same bits for every M. The addend is added to the
//            sum, which is then rounded once.
// Limits     CUDA cores: past 8 rows tensor cores win
#include "cuda/linear_few.h"

#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

constexpr int kMost = 8, kThreads = 256, kRows = 2, kUnroll = 4;

// The parts' rows are counted through; a pair of rows never lies in two parts.
constexpr int kMostParts = 3;
template <class T>
struct FewPart {
  Matrix<T> y;
  Matrix<const T> w, addend;  // addend.data null: zero
  i64 begin, end;             // its rows in the count
};
template <class T>
struct FewParts {
  FewPart<T> part[kMostParts];
  int n;
};

template <class T, int M>
__global__ void __launch_bounds__(kThreads)
    linear_few_kernel(FewParts<T> parts, Matrix<const T> x, int k) {
  constexpr int N = 16 / static_cast<int>(sizeof(T)), kStep = 32 * N;
  int lane = threadIdx.x % 32;
  i64 row0 = (static_cast<i64>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kRows;
  FewPart<T> p = parts.part[0];
#pragma unroll
  for (int i = 1; i < kMostParts; ++i)
    if (i < parts.n && row0 >= parts.part[i].begin) p = parts.part[i];
  if (row0 >= p.end) return;  // whole warps
  row0 -= p.begin;
  const i64 n = p.end - p.begin;
  const T* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = p.w.at(min(row0 + r, n - 1), 0);
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
      if (lane != 0 || row0 + r >= n) continue;
      if (p.addend.data) total += to_float(*p.addend.at(m, row0 + r));
      *p.y.at(m, row0 + r) = from_float<T>(total);
    }
}

}  // namespace

bool linear_few_rows(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const i64 M = x.rows(), K = x.cols();
  if (parts.empty() || parts.size() > kMostParts) return false;
  if (M < 1 || M > kMost || K < 1 || K > INT32_MAX) return false;
  for (const LinearPart& part : parts) {
    const DType t = part.w->values().dtype();
    if (x.dtype() != t || part.y.dtype() != t || (part.addend && part.addend.dtype() != t))
      return false;
  }
  return dispatch_device(x.dtype(), [&]<class T>() {
    using Device = device_t<T>;
    FewParts<Device> few{.part = {}, .n = static_cast<int>(parts.size())};
    i64 rows = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Tensor& w = parts[i].w->values();
      if (!packable(16 / static_cast<int>(sizeof(T)), K, x, w)) return false;
      FewPart<Device>& part = few.part[i];
      part = {matrix<T>(parts[i].y), const_matrix<T>(w), {}, rows, rows + w.rows()};
      if (parts[i].addend) part.addend = const_matrix<T>(parts[i].addend);
      rows = ceil_div(part.end, kRows) * kRows;
    }
    auto go = [&]<int ROWS>() {
      launch_early("linear_few", linear_few_kernel<Device, ROWS>,
                   grid_of(ceil_div(rows, kThreads / 32 * kRows)), dim3(kThreads), stream, few,
                   const_matrix<T>(x), static_cast<int>(K));
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
