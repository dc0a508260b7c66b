// Gated units, y = act(gate) * up, and plain activations, y = act(gate), with
// act(g) = g * sigmoid(z(g)) (activation.cuh); forward and backward.
//
// Maths      with s = sigmoid(z(g)):  dup = dy g s,  dgate = dy up s (1 + g z'(g) (1 - s)); alone
//            dgate (+)= dy s (1 + g z'(g) (1 - s))
// Shapes     all (T,F), each with its own row stride; dgate may be gate's memory, dup may be up's
// Plan       rowwise.cuh: a thread reads its elements of every input before it writes
// Bytes      gated: forward 2 in, 1 out; backward 3 in, 2 out, 3 if y is asked for again. Alone:
//            forward 1 in, 1 out; backward 2 in, 1 out (read too when adding).
#include "cuda/cuda_backend.h"
#include "cuda/gated.cuh"
#include "cuda/rowwise.cuh"

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
    for (int i = 0; i < N; ++i) u[i] = gated<T, Act>(g[i], u[i]);
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
    glu_gradients<Act, sizeof(T) == 2>(d, g, u);
    if (y.data) store_pack<N>(y.at(row, col), d);
    store_pack<N>(dgate.at(row, col), g);
    store_pack<N>(dup.at(row, col), u);
  }
};

template <class Act, class T, int N>
struct ActOp {
  static constexpr int kWidth = N;
  Matrix<T> y;
  Matrix<const T> x;
  __device__ void operator()(i64 row, i64 col) const {
    float v[N];
    load_pack<N>(x.at(row, col), v);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] *= sigmoid(Act::z(v[i]));
    store_pack<N>(y.at(row, col), v);
  }
};

template <class Act, class T, int N>
struct ActBackwardOp {
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
      float s = sigmoid(Act::z(v[i]));
      d[i] *= s * (1.0f + v[i] * Act::dz(v[i]) * (1.0f - s));
    }
    write_pack<N>(dx.at(row, col), d, accumulate);
  }
};

template <class Act>
void glu_forward(cudaStream_t stream, const Tensor& y, const Tensor& gate, const Tensor& up) {
  Walk walk(y, gate, up);
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise(
          "gated_forward", walk.rows, walk.cols, stream,
          GluOp<Act, device_t<T>, N>{matrix<T>(y), const_matrix<T>(gate), const_matrix<T>(up)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, y, gate, up) ? go.template operator()<kN>()
                                         : go.template operator()<1>();
  });
}

template <class Act>
void glu_backward(cudaStream_t stream, const Tensor& y, const Tensor& dgate, const Tensor& dup,
                  const Tensor& dy, const Tensor& gate, const Tensor& up) {
  const Tensor& again = y ? y : dy;
  Walk walk(again, dgate, dup, dy, gate, up);
  dispatch_device(dy.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("gated_backward", walk.rows, walk.cols, stream,
                     GluBackwardOp<Act, device_t<T>, N>{
                         y ? matrix<T>(y) : Matrix<device_t<T>>{}, matrix<T>(dgate), matrix<T>(dup),
                         const_matrix<T>(dy), const_matrix<T>(gate), const_matrix<T>(up)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, again, dgate, dup, dy, gate, up) ? go.template operator()<kN>()
                                                             : go.template operator()<1>();
  });
}

template <class Act>
void act_forward(cudaStream_t stream, const Tensor& y, const Tensor& x) {
  Walk walk(y, x);
  dispatch_device(y.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("activation_forward", walk.rows, walk.cols, stream,
                     ActOp<Act, device_t<T>, N>{matrix<T>(y), const_matrix<T>(x)});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, y, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

template <class Act>
void act_backward(cudaStream_t stream, const Tensor& dx, GradMode mode, const Tensor& dy,
                  const Tensor& x) {
  Walk walk(dx, dy, x);
  dispatch_device(x.dtype(), [&]<class T>() {
    auto go = [&]<int N>() {
      launch_rowwise("activation_backward", walk.rows, walk.cols, stream,
                     ActBackwardOp<Act, device_t<T>, N>{matrix<T>(dx), const_matrix<T>(dy),
                                                        const_matrix<T>(x), mode == GradMode::Add});
    };
    constexpr int kN = 16 / static_cast<int>(sizeof(T));
    packable(kN, walk.cols, dx, dy, x) ? go.template operator()<kN>() : go.template operator()<1>();
  });
}

// Calls f<Silu>(), f<GeluTanh>() or f<Relu>() for `act`.
template <class F>
void with_activation(Activation act, F&& f) {
  if (act == Activation::Silu)
    f.template operator()<Silu>();
  else if (act == Activation::Gelu)
    f.template operator()<GeluTanh>();
  else
    f.template operator()<Relu>();
}

}  // namespace

void CudaBackend::gated_forward(Activation act, const Tensor& y, const Tensor& gate,
                                const Tensor& up) {
  with_activation(act, [&]<class Act>() {
    if (up)
      glu_forward<Act>(stream(), y, gate, up);
    else
      act_forward<Act>(stream(), y, gate);
  });
}

void CudaBackend::gated_backward(Activation act, const Tensor& y, const Tensor& dgate,
                                 GradMode mode, const Tensor& dup, const Tensor& dy,
                                 const Tensor& gate, const Tensor& up) {
  check_gated_backward(y, mode, dup, up);
  with_activation(act, [&]<class Act>() {
    if (up)
      glu_backward<Act>(stream(), y, dgate, dup, dy, gate, up);
    else
      act_backward<Act>(stream(), dgate, mode, dy, gate);
  });
}

}  // namespace lk
