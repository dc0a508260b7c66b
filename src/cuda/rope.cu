// Rotary position embedding: rotates each head's pairs (i, i + D/2) by their position's angle.
//
// Maths      (a, b) -> (a cos - b sin, b cos + a sin); inverse, which is the backward: sin -> -sin
// Shapes     x, y (T, heads*D) with row strides, y may be x; table (P,D) F32: cos | sin; positions
//            (T) I32
// Plan       rowwise.cuh over (T, heads * D/2): a thread owns N pairs of one head, so in-place is
//            safe
// Bytes      x once, y once; the table's rows stay in L1/L2
#include "cuda/cuda_backend.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

template <class T, int N>
struct RopeOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  Matrix<const float> table;
  const int* positions;
  int half;
  bool inverse, accumulate;

  __device__ void operator()(i64 row, i64 pair) const {
    int head = static_cast<int>(pair) / half, i = static_cast<int>(pair) % half;
    i64 col = static_cast<i64>(head) * 2 * half + i;
    float a[N], b[N], c[N], s[N];
    load_pack<N>(x.at(row, col), a);
    load_pack<N>(x.at(row, col + half), b);
    const float* angles = table.at(positions[row], i);
#pragma unroll
    for (int j = 0; j < N; ++j) c[j] = angles[j], s[j] = angles[half + j];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      float sine = inverse ? -s[j] : s[j];
      float rotated_a = a[j] * c[j] - b[j] * sine;
      b[j] = b[j] * c[j] + a[j] * sine;
      a[j] = rotated_a;
    }
    write_pack<N>(y.at(row, col), a, accumulate);
    write_pack<N>(y.at(row, col + half), b, accumulate);
  }
};

}  // namespace

void CudaBackend::rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                       const Tensor& positions, int head_dim, bool inverse) {
  if (mode == GradMode::Skip) return;
  int half = head_dim / 2;
  check(x.cols() <= INT32_MAX, "cuda rope: row too long");
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("rope", x.rows(), x.cols() / 2, stream(),
                     RopeOp<device_t<T>, N>{
                         matrix<T>(y), const_matrix<T>(x), const_matrix<float>(table),
                         positions.data<std::int32_t>(), half, inverse, mode == GradMode::Add});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, half, x, y) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

}  // namespace lk
