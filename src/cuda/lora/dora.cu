// DoRA's kernels: row norms of W + s B A, columns times m / norm, and that product's backward.
//
// Shapes     y, x, dy, dv, v (T,N); m, inverse, w_sq, dm of a part's rows; wa (N,R), gram (R,R),
//            b (N,R)
// Plan       One launch serves all parts that lie side by side. inverse_norms: one launch for all
//            projections of a layer, eight lanes per row. scale_columns and its backward: a block walks 64 tokens of up to 32
//            packs of columns, a thread some of the tokens of one pack, with its factors in registers;
//            the backward writes the block's sums of dy v, and a second launch adds the blocks'.
// Bytes      each matrix once; w_sq, wa and b once; partial sums are N T / 16 bytes
// Numbers    F32 sums in an order that depends on the shapes alone: two runs give the same bits
// Limits     parts that begin and end at whole packs move 16 bytes at a time, others one value
#include "cuda/lora/dora_kernels.h"

#include "cuda/pack.cuh"

namespace lk {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;                 // of a block
constexpr int kTokens = 64;                                       // that a block walks
constexpr int kInFlight = 4;                                      // tokens of a thread at a time
constexpr int kNormLanes = 8, kNormRows = kThreads / kNormLanes;  // of a row; of a block
constexpr i64 kMostStagedRank = 64;
constexpr int kMostParts = 4, kMostNorms = 8;  // of a launch

// The parts as kernels see them; their vectors are read at a column less the part's first.
struct Parts {
  struct Part {
    i64 begin, end;
    const float *m, *inverse;
    float* dm;
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

// The row norms of several projections.
template <class T>
struct Norms {
  struct Of {
    float* inverse;
    const float* w_sq;
    Matrix<const float> wa, gram;
    Matrix<const T> b;
    float s;
    int rank;
    i64 rows;
  };
  Of of[kMostNorms];
};

// Block (x, y): kNormRows rows of projection y, each by kNormLanes neighbouring lanes. With kStaged those
// of b, and gram, wait in shared memory.
template <class T, bool kStaged>
__global__ void __launch_bounds__(kThreads)
    inverse_norms_kernel(const __grid_constant__ Norms<T> all) {
  extern __shared__ float shared[];
  const auto& p = all.of[blockIdx.y];
  const i64 first = static_cast<i64>(blockIdx.x) * kNormRows;
  if (first >= p.rows) return;
  const int rank = p.rank, thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kNormLanes, row = thread / kNormLanes;
  const i64 n = min(first + row, p.rows - 1);
  const float w_sq = p.w_sq[n];
  float *rows = shared, *factors = shared + kNormRows * rank;
  if constexpr (kStaged) {
    for (int i = thread; i < kNormRows * rank; i += kThreads)
      rows[i] = to_float(*p.b.at(min(first + i / rank, p.rows - 1), i % rank));
    for (int i = thread; i < rank * rank; i += kThreads)
      factors[i] = *p.gram.at(i / rank, i % rank);
    __syncthreads();
  }
  const auto of_b = [&](int r) { return kStaged ? rows[row * rank + r] : to_float(*p.b.at(n, r)); };
  float cross = 0.0f, square = 0.0f;
  for (int r = lane; r < rank; r += kNormLanes) {
    cross = fmaf(*p.wa.at(n, r), of_b(r), cross);
    float sum = 0.0f;
#pragma unroll 8
    for (int q = 0; q < rank; ++q)
      sum = fmaf(kStaged ? factors[q * rank + r] : *p.gram.at(q, r), of_b(q), sum);
    square = fmaf(of_b(r), sum, square);
  }
  float added = 2.0f * p.s * cross + p.s * p.s * square;
#pragma unroll
  for (int lanes = kNormLanes / 2; lanes > 0; lanes /= 2)
    added += __shfl_xor_sync(~0u, added, lanes);
  if (lane != 0 || first + row >= p.rows) return;
  const float norm_sq = w_sq + added;
  p.inverse[n] = norm_sq > 0.0f ? 1.0f / sqrtf(norm_sq) : 0.0f;
}

// How a block walks: so many packs side by side that whole blocks cover a row, or nearly, and tokens
// below each other.
struct Walk {
  dim3 grid, block;
  Walk(i64 packs, i64 rows)
      : grid(grid_of(ceil_div(packs, 32), ceil_div(rows, kTokens))),
        block(static_cast<unsigned>(ceil_div(packs, grid.x))) {
    block.y = kThreads / block.x;
  }
};

// The tokens that a thread loads before it stores any: an output may lie over an input, so the compiler
// does not move a load ahead of a store. Calls f(u, t).
template <class F>
__device__ __forceinline__ void each_in_flight(i64 t0, i64 last, const F& f) {
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const i64 t = t0 + u * static_cast<i64>(blockDim.y);
    if (t < last) f(u, t);
  }
}

// A pack as it lies in memory: in a fourth of the registers of its numbers, or in half.
template <class T, int N>
struct RawPack {
  static constexpr int kWords = N == 1 ? 1 : 4;  // packs are of 16 bytes
  std::uint32_t word[kWords];

  __device__ __forceinline__ void load(const T* p) {
    if constexpr (N == 1) {
      word[0] = __float_as_uint(to_float(*p));
    } else {
      const uint4 raw = *reinterpret_cast<const uint4*>(p);
      word[0] = raw.x, word[1] = raw.y, word[2] = raw.z, word[3] = raw.w;
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4 || N == 1) return __uint_as_float(word[i]);
    return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
  }
};

// A thread walks kTokens / blockDim.y tokens of one pack of columns, with its factors in registers.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    scale_columns_kernel(Matrix<T> y, Matrix<const T> x, Matrix<const T> addend, const T* shift,
                         const __grid_constant__ Parts parts, i64 n_rows, i64 n_cols) {
  const i64 col = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (col >= n_cols) return;
  const i64 first = static_cast<i64>(blockIdx.y) * kTokens, last = min(first + kTokens, n_rows);
  const i64 step = static_cast<i64>(kInFlight) * blockDim.y;
  float factor[N];
  parts.factors(col, factor);
  for (i64 t0 = first + threadIdx.y; t0 < last; t0 += step) {
    RawPack<T, N> v[kInFlight], to[kInFlight];
    each_in_flight(t0, last, [&](int u, i64 t) {
      v[u].load(x.at(t, col));
      if (addend.data) to[u].load(addend.at(t, col));
    });
    each_in_flight(t0, last, [&](int u, i64 t) {
      float out[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float at = shift ? to_float(shift[col + i]) : 0.0f;
        out[i] = factor[i] * (v[u][i] - at) + ((addend.data ? to[u][i] : 0.0f) + at);
      }
      store_pack<N>(y.at(t, col), out);
    });
  }
}

// partial[chunk][col] = the chunk's sum of dy v
template <class T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    scale_columns_backward_kernel(Matrix<T> dv, float* partial, Matrix<const T> dy,
                                  Matrix<const T> v, const __grid_constant__ Parts parts,
                                  i64 n_rows, i64 n_cols) {
  __shared__ float sums[kThreads * N];
  const int width = static_cast<int>(blockDim.x) * N;  // columns of the block
  const i64 first_col = static_cast<i64>(blockIdx.x) * width, col = first_col + threadIdx.x * N;
  const i64 first = static_cast<i64>(blockIdx.y) * kTokens, last = min(first + kTokens, n_rows);
  const i64 step = static_cast<i64>(kInFlight) * blockDim.y;
  float sum[N] = {};
  if (col < n_cols) {
    float factor[N];
    parts.factors(col, factor);
    for (i64 t0 = first + threadIdx.y; t0 < last; t0 += step) {
      RawPack<T, N> g[kInFlight], at[kInFlight];
      each_in_flight(t0, last, [&](int u, i64 t) {
        g[u].load(dy.at(t, col));
        at[u].load(v.at(t, col));
      });
      each_in_flight(t0, last, [&](int u, i64 t) {
        float out[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float up = g[u][i];
          sum[i] = fmaf(up, at[u][i], sum[i]);
          out[i] = up * factor[i];
        }
        store_pack<N>(dv.at(t, col), out);
      });
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    sums[static_cast<int>(threadIdx.y) * width + static_cast<int>(threadIdx.x) * N + i] = sum[i];
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  for (int c = thread; c < width && first_col + c < n_cols;
       c += static_cast<int>(blockDim.x * blockDim.y)) {
    float all = 0.0f;
    for (int row = 0; row < static_cast<int>(blockDim.y); ++row) all += sums[row * width + c];
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

void CudaDoraKernels::inverse_norms(std::span<const DoraNorms> all) {
  if (all.size() > kMostNorms) {
    inverse_norms(all.subspan(kMostNorms));
    all = all.first(kMostNorms);
  }
  if (all.empty()) return;
  i64 rank = 0, rows = 0;
  for (const DoraNorms& n : all)
    rank = std::max(rank, n.gram.rows()), rows = std::max(rows, n.wa.rows());
  const bool staged = rank <= kMostStagedRank;
  const i64 floats = staged ? (kNormRows + rank) * rank : 0;
  dispatch_device(all[0].b.dtype(), [&]<class T>() {
    using D = device_t<T>;
    Norms<D> norms{};
    for (std::size_t i = 0; i < all.size(); ++i) {
      const DoraNorms& n = all[i];
      norms.of[i] = {.inverse = n.inverse.data<float>(),
                     .w_sq = n.w_sq.data<float>(),
                     .wa = const_matrix<float>(n.wa),
                     .gram = const_matrix<float>(n.gram),
                     .b = const_matrix<T>(n.b),
                     .s = static_cast<float>(n.scale),
                     .rank = static_cast<int>(n.gram.rows()),
                     .rows = n.wa.rows()};
    }
    launch("inverse_norms", staged ? inverse_norms_kernel<D, true> : inverse_norms_kernel<D, false>,
           grid_of(ceil_div(rows, kNormRows), std::ssize(all)), dim3(kThreads),
           static_cast<std::size_t>(floats) * sizeof(float), backend_.stream(), norms);
  });
}

void CudaDoraKernels::scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                                    std::span<const DoraPart> parts, const Weight* shift) {
  const Tensor& to = addend.defined() ? addend : y;  // only its layout is asked for
  dispatch_device(y.dtype(), [&]<class T>() {
    using D = device_t<T>;
    auto go = [&]<int N>() {
      const Walk walk(ceil_div(y.cols(), N), y.rows());
      launch("scale_columns", scale_columns_kernel<D, N>, walk.grid, walk.block, 0,
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
      const Walk walk(ceil_div(cols, N), rows);
      launch("scale_columns_backward", scale_columns_backward_kernel<device_t<T>, N>, walk.grid,
             walk.block, 0, backend_.stream(), matrix<T>(dv), partial.data<float>(),
             const_matrix<T>(dy), const_matrix<T>(v), all, rows, cols);
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, cols, dv, dy, v) && whole_packs(parts, kN) ? go.template operator()<kN>()
                                                            : go.template operator()<1>();
  });
  launch("add_chunks", add_chunks_kernel, grid_of(ceil_div(cols, 32)), dim3(32, kWarps), 0,
         backend_.stream(), all, static_cast<const float*>(partial.data<float>()), chunks, cols);
}

}  // namespace lk
