#include "cpu/fast/dora.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

template <class T>
void inverse_norms_plain(accumulate_t<T>* inverse, const accumulate_t<T>* w_sq,
                         Matrix<accumulate_t<T>> wa, Matrix<accumulate_t<T>> gram, Matrix<T> b,
                         accumulate_t<T> s) {
  using A = accumulate_t<T>;
  parallel_for(b.rows, b.rows * b.cols * b.cols, [&](std::int64_t n) {
    A cross = 0, square = 0;
    for (std::int64_t r = 0; r < b.cols; ++r) {
      cross += wa[n][r] * load(b[n][r]);
      A sum = 0;
      for (std::int64_t q = 0; q < b.cols; ++q) sum += gram[r][q] * load(b[n][q]);
      square += load(b[n][r]) * sum;
    }
    const A norm_sq = w_sq[n] + 2 * s * cross + s * s * square;
    inverse[n] = norm_sq > 0 ? 1 / std::sqrt(norm_sq) : 0;
  });
}

template <class T>
void scale_columns_plain(Matrix<T> y, GradMode mode, Matrix<T> x, const accumulate_t<T>* m,
                         const accumulate_t<T>* inverse, const T* shift) {
  using A = accumulate_t<T>;
  parallel_pieces(y.rows, y.cols, [&](std::int64_t t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const A at = shift ? load(shift[n]) : A(0);
      put(y[t][n], mode, m[n] * inverse[n] * (load(x[t][n]) - at) + at);
    }
  });
}

// Columns are summed side by side, tokens in order: no result depends on the number of threads.
template <class T>
void scale_columns_backward_plain(Matrix<T> dv, accumulate_t<T>* dm, GradMode mode, Matrix<T> dy,
                                  Matrix<T> v, const accumulate_t<T>* m,
                                  const accumulate_t<T>* inverse) {
  using A = accumulate_t<T>;
  constexpr std::int64_t kColumns = 64;
  parallel_for((dy.cols + kColumns - 1) / kColumns, dy.rows * dy.cols, [&](std::int64_t unit) {
    const std::int64_t begin = unit * kColumns, end = std::min(begin + kColumns, dy.cols);
    A sums[kColumns] = {};
    for (std::int64_t t = 0; t < dy.rows; ++t)
      for (std::int64_t n = begin; n < end; ++n) {
        const A gradient = load(dy[t][n]);
        sums[n - begin] += gradient * load(v[t][n]);
        put(dv[t][n], GradMode::Write, m[n] * inverse[n] * gradient);
      }
    for (std::int64_t n = begin; n < end; ++n) put(dm[n], mode, inverse[n] * sums[n - begin]);
  });
}

class CpuDoraKernels final : public DoraKernels {
 public:
  explicit CpuDoraKernels(std::int64_t& weight_gradients) : DoraKernels(weight_gradients) {}

  void inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Tensor& wa,
                     const Tensor& gram, const Tensor& b, double s) override {
    dispatch_float(b.dtype(), [&]<class T>() {
      using A = accumulate_t<T>;
      inverse_norms_plain<T>(inverse.data<A>(), w_sq.data<A>(), matrix<A>(wa), matrix<A>(gram),
                             matrix<T>(b), static_cast<A>(s));
    });
  }
  void scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& m,
                     const Tensor& inverse, const Weight* shift) override {
    dispatch_float(y.dtype(), [&]<class T>() {
      using A = accumulate_t<T>;
      scale_columns_plain<T>(matrix<T>(y), mode, matrix<T>(x), m.data<A>(), inverse.data<A>(),
                             shift ? shift->values().data<T>() : nullptr);
    });
  }

 private:
  void run_scale_columns_backward(const Tensor& dv, const Tensor& dm, GradMode mode,
                                  const Tensor& dy, const Tensor& v, const Tensor& m,
                                  const Tensor& inverse) override {
    dispatch_float(dy.dtype(), [&]<class T>() {
      using A = accumulate_t<T>;
      scale_columns_backward_plain<T>(matrix<T>(dv), dm.data<A>(), mode, matrix<T>(dy),
                                      matrix<T>(v), m.data<A>(), inverse.data<A>());
    });
  }
};

}  // namespace

std::unique_ptr<DoraKernels> make_dora_kernels(std::int64_t& weight_gradients) {
  return std::make_unique<CpuDoraKernels>(weight_gradients);
}

}  // namespace lk::cpu
