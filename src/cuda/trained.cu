// Vectors and tables that train: scaling by a vector, and sums over tokens for their gradients.
//
// Maths      y (+)= x * l in every row;  dl_j (+)= sum_t a_tj (b_tj - mean_t) rstd_t;
//            dtable_v (+)= sum over the tokens i with ids_i = v of dy_i
// Shapes     x, y, a, b (T,N) with row strides, l, dl (N); dtable (V,C), dy (T,C), ids (T);
//            gradients F32
// Plan       scale_columns: rowwise.cuh. column sums, in two launches: a block sums 32 columns of
//            256 rows, each of its 8 warps every eighth row, a lane one column, so that loads are
//            whole sectors; then a thread adds the blocks' sums of one column. Rows by id: a block
//            for each token and 256 columns; the first token of an id owns its row and adds the
//            rows of all later ones in order, the other blocks leave.
// Bytes      each input once; partial sums are 4 N T / 256 bytes. Ids are read T times, from L2.
// Numbers    sums in F32, in an order that depends on the shapes only. No atomics.
// Limits     column sums of few columns (a norm of each head) run on few blocks in x; rows give the
//            rest. Rows by id read T ids per block: 8192 tokens are 64 M ids, which L2 delivers in
//            well under a millisecond.
#include "cuda/cuda_backend.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

template <class T, int N>
struct ScaleColumnsOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  const T* l;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N], factor[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(l + col, factor);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= factor[i];
    write_pack<N>(y.at(row, col), v, accumulate);
  }
};

constexpr int kSumRows = 256;    // rows of a block
constexpr int kSumWarps = 8;     // warps of a block, each with every eighth row
constexpr int kIdThreads = 256;  // columns of a block of sum_rows_by_id

// partial[chunk][col] = the sum of the chunk's rows. b.data, mean and rstd may be null.
template <class T>
__global__ void __launch_bounds__(32 * kSumWarps)
    column_sums_kernel(float* partial, Matrix<const T> a, Matrix<const T> b, const float* mean,
                       const float* rstd, i64 rows, i64 cols) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 col = static_cast<i64>(blockIdx.y) * 32 + lane;
  const i64 first = static_cast<i64>(blockIdx.x) * kSumRows;
  const i64 last = first + kSumRows < rows ? first + kSumRows : rows;
  float sum = 0.0f;
  if (col < cols)
    for (i64 row = first + warp; row < last; row += kSumWarps) {
      const float m = mean ? mean[row] : 0.0f, r = rstd ? rstd[row] : 1.0f;
      const float factor = b.data ? (to_float(*b.at(row, col)) - m) * r : r;
      sum = fmaf(to_float(*a.at(row, col)), factor, sum);
    }
  __shared__ float sums[kSumWarps][32];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || col >= cols) return;
#pragma unroll
  for (int w = 1; w < kSumWarps; ++w) sum += sums[w][lane];
  partial[static_cast<i64>(blockIdx.x) * cols + col] = sum;
}

// out[col] (+)= the sum of partial[chunk][col] over the chunks, in order
__global__ void __launch_bounds__(256)
    add_partial_sums_kernel(float* out, const float* partial, i64 chunks, i64 cols,
                            bool accumulate) {
  const i64 col = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  float sum = 0.0f;
  for (i64 chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * cols + col];
  out[col] = accumulate ? out[col] + sum : sum;
}

// The block of the first token with an id adds the rows of all tokens with it, in order.
template <class T>
__global__ void __launch_bounds__(kIdThreads)
    sum_rows_by_id_kernel(Matrix<float> dtable, Matrix<const T> dy, const int* ids, i64 tokens,
                          i64 cols) {
  const i64 own = blockIdx.x;
  const int id = ids[own];
  bool seen = false;
  for (i64 i = threadIdx.x; i < own; i += kIdThreads) seen = seen || ids[i] == id;
  if (__syncthreads_or(seen)) return;  // the same answer for the whole block
  const i64 col = static_cast<i64>(blockIdx.y) * kIdThreads + threadIdx.x;
  __shared__ bool same[kIdThreads];
  float sum = 0.0f;
  for (i64 first = own; first < tokens; first += kIdThreads) {
    const i64 mine = first + threadIdx.x;
    const bool match = mine < tokens && ids[mine] == id;
    same[threadIdx.x] = match;
    if (__syncthreads_or(match) && col < cols)
      for (int k = 0; k < kIdThreads; ++k)
        if (same[k]) sum += to_float(*dy.at(first + k, col));
    __syncthreads();  // `same` is read before it is written again
  }
  if (col < cols) *dtable.at(id, col) += sum;
}

}  // namespace

void CudaBackend::scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& l) {
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("scale_columns", y.rows(), y.cols(), stream(),
                     ScaleColumnsOp<device_t<T>, N>{matrix<T>(y), const_matrix<T>(x), pointer<T>(l),
                                                    mode == GradMode::Add});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, y.cols(), y, x, l) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

void CudaBackend::column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                              const Tensor& mean, const Tensor& rstd) {
  const i64 rows = a.rows(), cols = a.cols(), chunks = ceil_div(rows, kSumRows);
  Tensor partial = empty(Tag::Workspace, DType::F32, {chunks, cols});
  dispatch_device(a.dtype(), [&]<class T>() {
    launch("column_sums", column_sums_kernel<device_t<T>>, grid_of(chunks, ceil_div(cols, 32)),
           dim3(32 * kSumWarps), 0, stream(), partial.data<float>(), const_matrix<T>(a),
           b ? const_matrix<T>(b) : Matrix<const device_t<T>>{},
           mean ? mean.data<float>() : nullptr, rstd ? rstd.data<float>() : nullptr, rows, cols);
  });
  launch("add_partial_sums", add_partial_sums_kernel, grid_of(ceil_div(cols, 256)), dim3(256), 0,
         stream(), dl.data<float>(), partial.data<float>(), chunks, cols, mode == GradMode::Add);
}

void CudaBackend::sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                                 const Tensor& ids) {
  if (mode == GradMode::Write) fill(dtable, 0.0);
  dispatch_device(dy.dtype(), [&]<class T>() {
    launch("sum_rows_by_id", sum_rows_by_id_kernel<device_t<T>>,
           grid_of(dy.rows(), ceil_div(dy.cols(), kIdThreads)), dim3(kIdThreads), 0, stream(),
           matrix<float>(dtable), const_matrix<T>(dy), ids.data<std::int32_t>(), dy.rows(),
           dy.cols());
  });
}

}  // namespace lk
