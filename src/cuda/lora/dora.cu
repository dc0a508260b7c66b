// DoRA's kernels: row norms of W + s B A, columns times m / norm, and that product's backward.
//
// Shapes     y, x, dy, dv, v (T,N); m, inverse, w_sq, dm of a part's rows; wa (N,S), gram (S,S),
//            b (N,S)
// Plan       One launch serves all parts that lie side by side. inverse_norms: a warp per row, a lane
//            per thin column. scale_columns and its backward: a block walks 64 tokens of 32 packs of
//            columns, each of its 8 warps every eighth token, with their factors in registers; the
//            backward writes the block's sums of dy v, and a second launch adds the blocks'.
// Bytes      each matrix once; w_sq, wa and b once; partial sums are N T / 16 bytes
// Numbers    F32 sums in an order that depends on the shapes alone: two runs give the same bits
// Limits     parts that begin and end at whole packs move 16 bytes at a time, others one value
#include "cuda/lora/dora_kernels.h"

#include "cuda/pack.cuh"

namespace lk {
namespace {

constexpr int kWarps = 8;     // of a block
constexpr int kTokens = 64;   // of a block
constexpr int kInFlight = 4;  // tokens of a warp
constexpr int kMostParts = 4;

// The parts as kernels see them; their vectors are read at a column less the part's first.
struct Parts {
  struct Part {
    i64 begin, end;
    int column, rank;
    const float *w_sq, *m;
    float *inverse, *dm;
    bool accumulate;
  };
  int n;
  Part part[kMostParts];

  // Copies the part that has this column to `p`. Its place among the parameters is chosen by tests
  // and not by an index, which would move all parts into local memory first.
  __device__ __forceinline__ bool find(i64 column, Part& p) const {
    bool found = false;
#pragma unroll
    for (int i = 0; i < kMostParts; ++i)
      if (i < n && column >= part[i].begin && column < part[i].end) p = part[i], found = true;
    return found;
  }
  // m inverse of the columns [column, column + N), which lie in one part or in none: 1 there.
  template <int N>
  __device__ __forceinline__ void factors(i64 column, float (&factor)[N]) const {
    Part p;
    const bool found = find(column, p);
#pragma unroll
    for (int i = 0; i < N; ++i)
      factor[i] = found ? p.m[column - p.begin + i] * p.inverse[column - p.begin + i] : 1.0f;
  }
};

Parts arguments(std::span<const DoraPart> parts) {
  check(parts.size() <= kMostParts, "cuda dora: ", parts.size(), " parts");
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  Parts all{static_cast<int>(parts.size()), {}};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const DoraPart& p = parts[i];
    all.part[i] = {.begin = p.begin,
                   .end = p.end,
                   .column = static_cast<int>(p.column),
                   .rank = static_cast<int>(p.rank),
                   .w_sq = pointer(p.w_sq),
                   .m = pointer(p.m),
                   .inverse = pointer(p.inverse),
                   .dm = pointer(p.dm),
                   .accumulate = p.mode == GradMode::Add};
  }
  return all;
}

// Whether no pack of `width` columns crosses the edge of a part.
bool whole_packs(std::span<const DoraPart> parts, i64 width) {
  return std::all_of(parts.begin(), parts.end(),
                     [&](const DoraPart& p) { return p.begin % width == 0 && p.end % width == 0; });
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    inverse_norms_kernel(const __grid_constant__ Parts parts, Matrix<const float> wa,
                         Matrix<const float> gram, Matrix<const T> b, i64 n_rows, float s) {
  const i64 n = static_cast<i64>(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= n_rows) return;
  Parts::Part p;
  if (!parts.find(n, p)) return;
  float cross = 0.0f, square = 0.0f;
  for (int r0 = 0; r0 < p.rank; r0 += 32) {  // uniform over the warp
    const int r = r0 + static_cast<int>(threadIdx.x);
    const bool inside = r < p.rank;
    const float br = inside ? to_float(*b.at(n, p.column + r)) : 0.0f;
    if (inside) cross = fmaf(*wa.at(n, p.column + r), br, cross);
    float sum = 0.0f;
    for (int q0 = 0; q0 < p.rank; q0 += 32) {
      const int own = q0 + static_cast<int>(threadIdx.x), count = min(32, p.rank - q0);
      const float bq = own < p.rank ? to_float(*b.at(n, p.column + own)) : 0.0f;
#pragma unroll 8
      for (int q = 0; q < count; ++q) {
        const float factor = inside ? *gram.at(p.column + q0 + q, p.column + r) : 0.0f;
        sum = fmaf(factor, __shfl_sync(~0u, bq, q), sum);
      }
    }
    square = fmaf(br, sum, square);
  }
  float added = 2.0f * s * cross + s * s * square;
  for (int lanes = 16; lanes > 0; lanes /= 2) added += __shfl_xor_sync(~0u, added, lanes);
  if (threadIdx.x != 0) return;
  const float norm_sq = p.w_sq[n - p.begin] + added;
  p.inverse[n - p.begin] = norm_sq > 0.0f ? 1.0f / sqrtf(norm_sq) : 0.0f;
}

// Calls f(u, t) for the tokens t of a warp that are loaded before any is stored: an output may lie over an
// input, so the compiler does not move a load ahead of a store.
template <class F>
__device__ __forceinline__ void each_in_flight(i64 t0, i64 last, const F& f) {
#pragma unroll
  for (int u = 0; u < kInFlight; ++u)
    if (t0 + u * kWarps < last) f(u, t0 + u * kWarps);
}

// A thread walks kTokens tokens of one pack of columns, with its factors in registers.
template <class T, int N>
__global__ void __launch_bounds__(32 * kWarps)
    scale_columns_kernel(Matrix<T> y, Matrix<const T> x, Matrix<const T> addend, const T* shift,
                         const __grid_constant__ Parts parts, i64 n_rows, i64 n_cols) {
  const i64 col = (static_cast<i64>(blockIdx.x) * 32 + threadIdx.x) * N;
  if (col >= n_cols) return;
  const i64 first = static_cast<i64>(blockIdx.y) * kTokens;
  const i64 last = first + kTokens < n_rows ? first + kTokens : n_rows;
  float factor[N], at[N] = {};
  parts.factors(col, factor);
  if (shift) {
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = to_float(shift[col + i]);
  }
  for (i64 t0 = first + threadIdx.y; t0 < last; t0 += kInFlight * kWarps) {
    float v[kInFlight][N], to[kInFlight][N] = {};
    each_in_flight(t0, last, [&](int u, i64 t) {
      load_pack<N>(x.at(t, col), v[u]);
      if (addend.data) load_pack<N>(addend.at(t, col), to[u]);
    });
    each_in_flight(t0, last, [&](int u, i64 t) {
#pragma unroll
      for (int i = 0; i < N; ++i) v[u][i] = factor[i] * (v[u][i] - at[i]) + (to[u][i] + at[i]);
      store_pack<N>(y.at(t, col), v[u]);
    });
  }
}

// partial[chunk][col] = the chunk's sum of dy v
template <class T, int N>
__global__ void __launch_bounds__(32 * kWarps)
    scale_columns_backward_kernel(Matrix<T> dv, float* partial, Matrix<const T> dy,
                                  Matrix<const T> v, const __grid_constant__ Parts parts,
                                  i64 n_rows, i64 n_cols) {
  __shared__ float sums[kWarps][32 * N];
  const i64 first_col = static_cast<i64>(blockIdx.x) * 32 * N, col = first_col + threadIdx.x * N;
  const i64 first = static_cast<i64>(blockIdx.y) * kTokens;
  const i64 last = first + kTokens < n_rows ? first + kTokens : n_rows;
  float sum[N] = {};
  if (col < n_cols) {
    float factor[N];
    parts.factors(col, factor);
    for (i64 t0 = first + threadIdx.y; t0 < last; t0 += kInFlight * kWarps) {
      float g[kInFlight][N], at[kInFlight][N];
      each_in_flight(t0, last, [&](int u, i64 t) {
        load_pack<N>(dy.at(t, col), g[u]);
        load_pack<N>(v.at(t, col), at[u]);
      });
      each_in_flight(t0, last, [&](int u, i64 t) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[i] = fmaf(g[u][i], at[u][i], sum[i]);
          g[u][i] *= factor[i];
        }
        store_pack<N>(dv.at(t, col), g[u]);
      });
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) sums[threadIdx.y][threadIdx.x * N + i] = sum[i];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
       c < 32 * N && first_col + c < n_cols; c += 32 * kWarps) {
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums[w][c];
    partial[static_cast<i64>(blockIdx.y) * n_cols + first_col + c] = all;
  }
}

// dm (+)= inverse sum of partial[chunk] over the chunks: each warp's in order, then the warps'.
__global__ void __launch_bounds__(32 * kWarps)
    add_chunks_kernel(const __grid_constant__ Parts parts, const float* partial, i64 chunks,
                      i64 n_cols) {
  __shared__ float sums[kWarps][32];
  const i64 col = static_cast<i64>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0.0f;
  if (col < n_cols)
#pragma unroll 4
    for (i64 chunk = threadIdx.y; chunk < chunks; chunk += kWarps)
      sum += partial[chunk * n_cols + col];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= n_cols) return;
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += sums[w][threadIdx.x];
  Parts::Part p;
  if (!parts.find(col, p)) return;
  sum *= p.inverse[col - p.begin];
  float* dm = p.dm + (col - p.begin);
  *dm = p.accumulate ? *dm + sum : sum;
}

}  // namespace

void CudaDoraKernels::inverse_norms(std::span<const DoraPart> parts, const Tensor& wa,
                                    const Tensor& gram, const Tensor& b, double s) {
  dispatch_device(b.dtype(), [&]<class T>() {
    launch("inverse_norms", inverse_norms_kernel<device_t<T>>, grid_of(ceil_div(b.rows(), kWarps)),
           dim3(32, kWarps), 0, backend_.stream(), arguments(parts), const_matrix<float>(wa),
           const_matrix<float>(gram), const_matrix<T>(b), b.rows(), static_cast<float>(s));
  });
}

void CudaDoraKernels::scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                                    std::span<const DoraPart> parts, const Weight* shift) {
  const Tensor& to = addend.defined() ? addend : y;  // only its layout is asked for
  dispatch_device(y.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      launch("scale_columns", scale_columns_kernel<D, N>,
             grid_of(ceil_div(y.cols(), 32 * N), ceil_div(y.rows(), kTokens)), dim3(32, kWarps), 0,
             backend_.stream(), matrix<T>(y), const_matrix<T>(x),
             addend.defined() ? const_matrix<T>(addend) : Matrix<const D>{},
             static_cast<const D*>(shift ? pointer<T>(shift->values()) : nullptr), arguments(parts),
             y.rows(), y.cols());
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, y.cols(), y, x, to) && whole_packs(parts, kN) ? go.template operator()<kN>()
                                                               : go.template operator()<1>();
  });
}

void CudaDoraKernels::run_scale_columns_backward(const Tensor& dv, const Tensor& dy,
                                                 const Tensor& v, std::span<const DoraPart> parts) {
  const i64 rows = dy.rows(), cols = dy.cols(), chunks = ceil_div(rows, kTokens);
  Tensor partial = backend_.empty(Tag::Workspace, DType::F32, {chunks, cols});
  const Parts all = arguments(parts);
  dispatch_device(dy.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch("scale_columns_backward", scale_columns_backward_kernel<device_t<T>, N>,
             grid_of(ceil_div(cols, 32 * N), chunks), dim3(32, kWarps), 0, backend_.stream(),
             matrix<T>(dv), partial.data<float>(), const_matrix<T>(dy), const_matrix<T>(v), all,
             rows, cols);
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, cols, dv, dy, v) && whole_packs(parts, kN) ? go.template operator()<kN>()
                                                            : go.template operator()<1>();
  });
  launch("add_chunks", add_chunks_kernel, grid_of(ceil_div(cols, 32)), dim3(32, kWarps), 0,
         backend_.stream(), all, static_cast<const float*>(partial.data<float>()), chunks, cols);
}

}  // namespace lk
