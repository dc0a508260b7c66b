// Moving rows: table lookup, gather, scatter.
//
// Shapes     y (n,C) = table[ids], table (V,C), dense or quantised (dequantise.cu); y (n,C) = x[rows]; dx[rows] (+)= dy (n,C)
// Plan       rowwise.cuh over (n,C); the index of a row is read once per thread, through L1
// Bytes      each moved row once in, once out. Rows are distinct in scatter: no two threads meet.
#include "cuda/quantised_kernels.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

// y[row] = x[index[row]]
template <class T, int N>
struct GatherOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  const int* index;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(index[row], col), v);
    store_pack<N>(y.at(row, col), v);
  }
};

// y[index[row]] (+)= x[row]
template <class T, int N>
struct ScatterOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  const int* index;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
    write_pack<N>(y.at(index[row], col), v, accumulate);
  }
};

}  // namespace

void CudaBackend::embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) {
  if (!table.quantised()) return gather_rows(y, table.values(), ids);
  quantised_kernels_->rows(y, table, ids.data<std::int32_t>());
}

void CudaBackend::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise(
          "gather_rows", rows.numel(), y.cols(), stream(),
          GatherOp<device_t<T>, N>{matrix<T>(y), const_matrix<T>(x), rows.data<std::int32_t>()});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, y.cols(), y, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

// y[rows] (+)= x
void CudaBackend::scatter(const Tensor& y, bool accumulate, const Tensor& x, const Tensor& rows) {
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("scatter_rows", rows.numel(), y.cols(), stream(),
                     ScatterOp<device_t<T>, N>{matrix<T>(y), const_matrix<T>(x),
                                               rows.data<std::int32_t>(), accumulate});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, y.cols(), y, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

void CudaBackend::put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  scatter(y, false, x, rows);
}

void CudaBackend::scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy,
                               const Tensor& rows) {
  if (mode == GradMode::Write) fill(dx, 0.0);
  scatter(dx, mode == GradMode::Add, dy, rows);
}

}  // namespace lk
