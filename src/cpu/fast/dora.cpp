#include "cpu/fast/dora.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

template <class T>
using Statistics = std::vector<accumulate_t<T>>;

// What each column of y is multiplied by: m inverse, and 1 outside of the parts.
template <class T>
Statistics<T> factors(std::int64_t n_cols, std::span<const DoraPart> parts) {
  using A = accumulate_t<T>;
  Statistics<T> all(static_cast<std::size_t>(n_cols), A(1));
  for (const DoraPart& p : parts)
    for (std::int64_t n = p.begin; n < p.end; ++n)
      all[static_cast<std::size_t>(n)] =
          p.m.data<A>()[n - p.begin] * p.inverse.data<A>()[n - p.begin];
  return all;
}

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
void scale_columns_plain(Matrix<T> y, Matrix<T> x, const Matrix<T>* addend,
                         const Statistics<T>& factor, const T* shift) {
  using A = accumulate_t<T>;
  parallel_pieces(y.rows, y.cols, [&](std::int64_t t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const A from = shift ? load(shift[n]) : A(0), to = addend ? load((*addend)[t][n]) : from;
      y[t][n] = rounded<T>(factor[static_cast<std::size_t>(n)] * (load(x[t][n]) - from) + to);
    }
  });
}

// Columns are summed side by side, tokens in order: no result depends on the number of threads.
template <class T>
void scale_columns_backward_plain(Matrix<T> dv, Statistics<T>& sums, Matrix<T> dy, Matrix<T> v,
                                  const Statistics<T>& factor) {
  using A = accumulate_t<T>;
  constexpr std::int64_t kColumns = 64;
  parallel_for((dy.cols + kColumns - 1) / kColumns, dy.rows * dy.cols, [&](std::int64_t unit) {
    const std::int64_t begin = unit * kColumns, end = std::min(begin + kColumns, dy.cols);
    for (std::int64_t t = 0; t < dy.rows; ++t)
      for (std::int64_t n = begin; n < end; ++n) {
        const A gradient = load(dy[t][n]);
        sums[static_cast<std::size_t>(n)] += gradient * load(v[t][n]);
        dv[t][n] = rounded<T>(factor[static_cast<std::size_t>(n)] * gradient);
      }
  });
}

class CpuDoraKernels final : public DoraKernels {
 public:
  explicit CpuDoraKernels(std::int64_t& weight_gradients) : DoraKernels(weight_gradients) {}

  void inverse_norms(std::span<const DoraNorms> all) override {
    for (const DoraNorms& n : all)
      dispatch_float(n.b.dtype(), [&]<class T>() {
        using A = accumulate_t<T>;
        inverse_norms_plain<T>(n.inverse.data<A>(), n.w_sq.data<A>(), matrix<A>(n.wa),
                               matrix<A>(n.gram), matrix<T>(n.b), static_cast<A>(n.scale));
      });
  }
  void scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                     std::span<const DoraPart> parts, const Weight* shift) override {
    dispatch_float(y.dtype(), [&]<class T>() {
      const Matrix<T> to = addend.defined() ? matrix<T>(addend) : Matrix<T>{};
      scale_columns_plain<T>(matrix<T>(y), matrix<T>(x), addend.defined() ? &to : nullptr,
                             factors<T>(y.cols(), parts),
                             shift ? shift->values().data<T>() : nullptr);
    });
  }

 private:
  void run_scale_columns_backward(const Tensor& dv, const Tensor& dy, const Tensor& v,
                                  std::span<const DoraPart> parts) override {
    dispatch_float(dy.dtype(), [&]<class T>() {
      using A = accumulate_t<T>;
      Statistics<T> sums(static_cast<std::size_t>(dy.cols()));
      scale_columns_backward_plain<T>(matrix<T>(dv), sums, matrix<T>(dy), matrix<T>(v),
                                      factors<T>(dy.cols(), parts));
      for (const DoraPart& p : parts)
        for (std::int64_t n = p.begin; n < p.end; ++n)
          put(p.dm.data<A>()[n - p.begin], p.mode,
              p.inverse.data<A>()[n - p.begin] * sums[static_cast<std::size_t>(n)]);
    });
  }
};

}  // namespace

std::unique_ptr<DoraKernels> make_dora_kernels(std::int64_t& weight_gradients) {
  return std::make_unique<CpuDoraKernels>(weight_gradients);
}

}  // namespace lk::cpu
