// Gated units (Shazeer 2020), y = act(gate) * up, and plain activations, y = act(gate). act is silu,
// gelu's tanh form or relu (activation.h).
#include "cpu/activation.h"
#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/gated_rows.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

template <class Act, class T>
void glu_forward_plain(Matrix<T> y, Matrix<T> gate, Matrix<T> up) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) {
      A g = load(gate[i][j]);
      y[i][j] = rounded<T>(g / (A(1) + std::exp(-Act::z(g))) * load(up[i][j]));
    }
}

// With s = sigmoid(z(g)): d act / dg = s (1 + g z'(g) (1 - s)).
template <class Act, class T>
void glu_backward_plain(Matrix<T> y, Matrix<T> dgate, Matrix<T> dup, Matrix<T> dy, Matrix<T> gate,
                        Matrix<T> up) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < dy.rows; ++i)
    for (std::int64_t j = 0; j < dy.cols; ++j) {
      A g = load(gate[i][j]), u = load(up[i][j]), d = load(dy[i][j]);
      A s = sigmoid_of<Act>(g);
      dgate[i][j] = rounded<T>(d * u * slope<Act>(g, s));
      dup[i][j] = rounded<T>(d * g * s);
      if (y.data) y[i][j] = rounded<T>(g * s * u);
    }
}

template <class Act, class T>
void act_forward_plain(Matrix<T> y, Matrix<T> x) {
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) {
      const accumulate_t<T> v = load(x[i][j]);
      y[i][j] = rounded<T>(v * sigmoid_of<Act>(v));
    }
}

template <class Act, class T>
void act_backward_plain(Matrix<T> dx, GradMode mode, Matrix<T> dy, Matrix<T> x) {
  for (std::int64_t i = 0; i < dx.rows; ++i)
    for (std::int64_t j = 0; j < dx.cols; ++j) {
      const accumulate_t<T> v = load(x[i][j]);
      put(dx[i][j], mode, load(dy[i][j]) * slope<Act>(v, sigmoid_of<Act>(v)));
    }
}

// ---- either of them -----------------------------------------------------------------------------

template <class Act>
void glu_forward(bool fast, const Tensor& y, const Tensor& gate, const Tensor& up) {
  dispatch_float(y.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast) {
        Matrix<T> to = matrix<T>(y), g = matrix<T>(gate), u = matrix<T>(up);
        if constexpr (std::is_same_v<T, bf16>)
          if (const Bf16Rows* native = native_rows<Act>())
            return parallel_pieces(
                to.rows, to.cols, [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                  native->swiglu(bits(to[i] + j), bits(g[i] + j), bits(u[i] + j), end - j);
                });
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 glu_forward_row<Act>(to[i] + j, g[i] + j, u[i] + j, end - j);
                               });
      }
    glu_forward_plain<Act>(matrix<T>(y), matrix<T>(gate), matrix<T>(up));
  });
}

template <class Act>
void glu_backward(bool fast, const Tensor& y, const Tensor& dgate, const Tensor& dup,
                  const Tensor& dy, const Tensor& gate, const Tensor& up) {
  dispatch_float(dy.dtype(), [&]<class T>() {
    const Matrix<T> again = y ? matrix<T>(y) : Matrix<T>{};
    if constexpr (has_fast_path<T>)
      if (fast) {
        Matrix<T> to_g = matrix<T>(dgate), to_u = matrix<T>(dup), d = matrix<T>(dy);
        Matrix<T> g = matrix<T>(gate), u = matrix<T>(up);
        if constexpr (std::is_same_v<T, bf16>)
          if (const Bf16Rows* native = again.data ? nullptr : native_rows<Act>())
            return parallel_pieces(
                d.rows, d.cols, [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                  native->swiglu_backward(bits(to_g[i] + j), bits(to_u[i] + j), bits(d[i] + j),
                                          bits(g[i] + j), bits(u[i] + j), end - j);
                });
        return parallel_pieces(
            d.rows, d.cols, [&](std::int64_t i, std::int64_t j, std::int64_t end) {
              glu_backward_row<Act>(again.data ? again[i] + j : nullptr, to_g[i] + j, to_u[i] + j,
                                    d[i] + j, g[i] + j, u[i] + j, end - j);
            });
      }
    glu_backward_plain<Act>(again, matrix<T>(dgate), matrix<T>(dup), matrix<T>(dy), matrix<T>(gate),
                            matrix<T>(up));
  });
}

template <class Act>
void act_forward(bool fast, const Tensor& y, const Tensor& x) {
  dispatch_float(y.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast) {
        Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 act_forward_row<Act>(to[i] + j, from[i] + j, end - j);
                               });
      }
    act_forward_plain<Act>(matrix<T>(y), matrix<T>(x));
  });
}

template <class Act>
void act_backward(bool fast, const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x) {
  dispatch_float(dx.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast) {
        Matrix<T> to = matrix<T>(dx), upper = matrix<T>(dy), from = matrix<T>(x);
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 act_backward_row<Act>(to[i] + j, mode == GradMode::Add,
                                                       upper[i] + j, from[i] + j, end - j);
                               });
      }
    act_backward_plain<Act>(matrix<T>(dx), mode, matrix<T>(dy), matrix<T>(x));
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

void CpuBackend::gated_forward(Activation act, const Tensor& y, const Tensor& gate,
                               const Tensor& up) {
  with_activation(act, [&]<class Act>() {
    if (up)
      glu_forward<Act>(fast(), y, gate, up);
    else
      act_forward<Act>(fast(), y, gate);
  });
}

void CpuBackend::gated_backward(Activation act, const Tensor& y, const Tensor& dgate, GradMode mode,
                                const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                const Tensor& up) {
  check_gated_backward(y, mode, dup, up);
  with_activation(act, [&]<class Act>() {
    if (up)
      glu_backward<Act>(fast(), y, dgate, dup, dy, gate, up);
    else
      act_backward<Act>(fast(), dgate, mode, dy, gate);
  });
}

}  // namespace lk
