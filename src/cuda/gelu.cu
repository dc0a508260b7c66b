// GELU by tanh: y = gelu(x); forward and backward.
//
// Maths      gelu(x) = x s, s = sigmoid(z(x)) (activation.cuh);  dx (+)= dy s (1 + x z'(x) (1 - s))
// Shapes     all (T,F), each with its own row stride
// Plan       rowwise.cuh
// Bytes      forward: 1 in, 1 out. backward: 2 in, 1 out (read too when adding).
#include "cuda/activation.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/rowwise.cuh"

namespace lk {
namespace {

template <class T, int N>
struct GeluOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= sigmoid(GeluTanh::z(v[i]));
    store_pack<N>(y.at(row, col), v);
  }
};

template <class T, int N>
struct GeluBackwardOp {
  static constexpr int kWidth = N;
  Matrix<T> dx;
  Matrix<const T> dy, x;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N], d[N];
    load_pack<N>(x.at(row, col), v);
    load_pack<N>(dy.at(row, col), d);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float s = sigmoid(GeluTanh::z(v[i]));
      d[i] *= s * (1.0f + v[i] * GeluTanh::dz(v[i]) * (1.0f - s));
    }
    write_pack<N>(dx.at(row, col), d, accumulate);
  }
};

}  // namespace

void CudaBackend::gelu_forward(const Tensor& y, const Tensor& x) {
  Walk walk(y, x);
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("gelu_forward", walk.rows, walk.cols, stream(),
                     GeluOp<device_t<T>, N>{matrix<T>(y), const_matrix<T>(x)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, y, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

void CudaBackend::gelu_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                const Tensor& x) {
  if (mode == GradMode::Skip) return;
  Walk walk(dx, dy, x);
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("gelu_backward", walk.rows, walk.cols, stream(),
                     GeluBackwardOp<device_t<T>, N>{matrix<T>(dx), const_matrix<T>(dy),
                                                    const_matrix<T>(x), mode == GradMode::Add});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, dx, dy, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

}  // namespace lk
