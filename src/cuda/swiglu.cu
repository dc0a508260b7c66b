// SwiGLU and GEGLU: y = act(gate) * up, act(g) = g * sigmoid(z(g)) (activation.cuh); forward and
// backward.
//
// Maths      with s = sigmoid(z(g)):  dup = dy g s,  dgate = dy up s (1 + g z'(g) (1 - s))
// Shapes     all (T,F), each with its own row stride; dgate may be gate's memory, dup may be up's
// Plan       rowwise.cuh: a thread reads its elements of every input before it writes
// Bytes      forward: 2 in, 1 out. backward: 3 in, 2 out, 3 if y is asked for again.
#include "cuda/cuda_backend.h"
#include "cuda/rowwise.cuh"
#include "cuda/swiglu.cuh"

namespace lk {
namespace {

template <class Act, class T, int N>
struct GluOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> gate, up;
  __device__ void operator()(i64 row, i64 col) const {
    float g[N], u[N];
    load_pack<N>(gate.at(row, col), g);
    load_pack<N>(up.at(row, col), u);
#pragma unroll
    for (int i = 0; i < N; ++i) u[i] *= g[i] * sigmoid(Act::z(g[i]));
    store_pack<N>(y.at(row, col), u);
  }
};

template <class Act, class T, int N>
struct GluBackwardOp {
  static constexpr int kWidth = N;
  Matrix<T> y, dgate, dup;  // y.data may be null
  Matrix<const T> dy, gate, up;
  __device__ void operator()(i64 row, i64 col) const {
    float d[N], g[N], u[N];
    load_pack<N>(dy.at(row, col), d);
    load_pack<N>(gate.at(row, col), g);
    load_pack<N>(up.at(row, col), u);
    glu_gradients<Act>(d, g, u);
    if (y.data) store_pack<N>(y.at(row, col), d);
    store_pack<N>(dgate.at(row, col), g);
    store_pack<N>(dup.at(row, col), u);
  }
};

template <class Act>
void glu_forward(const char* name, cudaStream_t stream, const Tensor& y, const Tensor& gate,
                 const Tensor& up) {
  Walk walk(y, gate, up);
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise(
          name, walk.rows, walk.cols, stream,
          GluOp<Act, device_t<T>, N>{matrix<T>(y), const_matrix<T>(gate), const_matrix<T>(up)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, y, gate, up) ? go.template operator()<kN>()
                                         : go.template operator()<1>();
  });
}

template <class Act>
void glu_backward(const char* name, cudaStream_t stream, const Tensor& y, const Tensor& dgate,
                  const Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up) {
  const Tensor& again = y ? y : dy;
  Walk walk(again, dgate, dup, dy, gate, up);
  dispatch_device(dy.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise(name, walk.rows, walk.cols, stream,
                     GluBackwardOp<Act, device_t<T>, N>{
                         y ? matrix<T>(y) : Matrix<device_t<T>>{}, matrix<T>(dgate), matrix<T>(dup),
                         const_matrix<T>(dy), const_matrix<T>(gate), const_matrix<T>(up)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, again, dgate, dup, dy, gate, up) ? go.template operator()<kN>()
                                                             : go.template operator()<1>();
  });
}

}  // namespace

void CudaBackend::swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  glu_forward<Silu>("swiglu_forward", stream(), y, gate, up);
}

void CudaBackend::swiglu_backward(const Tensor& y, const Tensor& dgate, const Tensor& dup,
                                  const Tensor& dy, const Tensor& gate, const Tensor& up) {
  glu_backward<Silu>("swiglu_backward", stream(), y, dgate, dup, dy, gate, up);
}

void CudaBackend::geglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  glu_forward<GeluTanh>("geglu_forward", stream(), y, gate, up);
}

void CudaBackend::geglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy,
                                 const Tensor& gate, const Tensor& up) {
  glu_backward<GeluTanh>("geglu_backward", stream(), {}, dgate, dup, dy, gate, up);
}

}  // namespace lk
