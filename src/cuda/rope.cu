// Rotary position embedding: rotates each head's pairs (i, i + D/2) by their position's angle.
//
// Maths      (a, b) -> (a cos - b sin, b cos + a sin); inverse, which is the backward: sin -> -sin
// Shapes     x, y (T, heads*D) with row strides, y may be x; table (P,D) F32: cos | sin; positions
//            (T) I32
// Plan       rowwise.cuh over (T, heads * D/2): a thread owns N pairs of one head, so in-place is
//            safe
// Bytes      x once, y once; the table's rows stay in L1/L2
//
// A step of generation handles q, k and v in one launch: columns of pairs of q, then of k, then of
// v. q is rotated in place; k and v go to the cache.
#include "cuda/cache_kernels.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

// Rotates N pairs (a, b) of one head by their angles: `angles` holds cos, and sin `half` further
// on.
template <int N>
__device__ __forceinline__ void rotate(float (&a)[N], float (&b)[N], const float* angles, int half,
                                       bool inverse) {
  float c[N], s[N];
#pragma unroll
  for (int j = 0; j < N; ++j) c[j] = angles[j], s[j] = angles[half + j];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    float sine = inverse ? -s[j] : s[j];
    float rotated_a = a[j] * c[j] - b[j] * sine;
    b[j] = b[j] * c[j] + a[j] * sine;
    a[j] = rotated_a;
  }
}

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
    float a[N], b[N];
    load_pack<N>(x.at(row, col), a);
    load_pack<N>(x.at(row, col + half), b);
    rotate<N>(a, b, table.at(positions[row], i), half, inverse);
    write_pack<N>(y.at(row, col), a, accumulate);
    write_pack<N>(y.at(row, col + half), b, accumulate);
  }
};

template <class T, int N>
struct RopeIntoCacheOp {
  static constexpr int kWidth = N;
  Matrix<T> q, k, v, keys, values;
  Matrix<const float> table;  // data null: nothing is rotated
  const int *positions, *rows;
  int q_heads, kv_heads, half;

  __device__ void operator()(i64 row, i64 pair) const {
    int head = static_cast<int>(pair) / half, i = static_cast<int>(pair) % half;
    const bool is_q = head < q_heads, is_v = head >= q_heads + kv_heads;
    if (!is_q) head -= is_v ? q_heads + kv_heads : q_heads;
    const i64 col = static_cast<i64>(head) * 2 * half + i;
    const Matrix<T>& from = is_q ? q : is_v ? v : k;
    float a[N], b[N];
    load_pack<N>(from.at(row, col), a);
    load_pack<N>(from.at(row, col + half), b);
    if (table.data && !is_v) rotate<N>(a, b, table.at(positions[row], i), half, false);
    const Matrix<T>& to = is_q ? q : is_v ? values : keys;
    const i64 at = is_q ? row : rows[row];
    write_pack<N>(to.at(at, col), a, false);
    write_pack<N>(to.at(at, col + half), b, false);
  }
};

}  // namespace

void CudaBackend::rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                       const Tensor& positions, int head_dim, bool inverse) {
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

bool CudaCacheKernels::rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const CacheRows& cache, const Tensor& table,
                                       const Tensor& positions, int head_dim) {
  if (head_dim % 2 != 0) return false;  // only models with learned positions have such heads
  const int half = head_dim / 2;
  const i64 cols = q.cols() + 2 * k.cols();
  check(cols <= INT32_MAX, "cuda rope_into_cache: row too long");
  dispatch_device(q.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise(
          "rope_into_cache", q.rows(), cols / 2, backend_.stream(),
          RopeIntoCacheOp<device_t<T>, N>{
              matrix<T>(q), matrix<T>(k), matrix<T>(v), matrix<T>(cache.keys),
              matrix<T>(cache.values), table ? const_matrix<float>(table) : Matrix<const float>{},
              table ? positions.data<std::int32_t>() : nullptr, cache.rows.data<std::int32_t>(),
              static_cast<int>(q.cols()) / head_dim, static_cast<int>(k.cols()) / head_dim, half});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, half, q, k, v, cache.keys, cache.values) ? go.template operator()<kN>()
                                                          : go.template operator()<1>();
  });
  return true;
}

}  // namespace lk
