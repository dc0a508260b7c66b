// Rotary position embedding (Su et al. 2021), the half-split pairing (i, i + D/2).
#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/simd.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twin: the definition ---------------------------------------------------------------

// Rotates forward with sign = 1, back with sign = -1.
template <class T>
void rope_plain(Matrix<T> y, GradMode mode, Matrix<T> x, Matrix<accumulate_t<T>> table,
                const std::int32_t* positions, std::int64_t head_dim, accumulate_t<T> sign) {
  using A = accumulate_t<T>;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const A* cosine = table[positions[t]];
    const A* sine = cosine + half;
    for (std::int64_t head = 0; head < x.cols; head += head_dim)
      for (std::int64_t i = head; i < head + half; ++i) {
        A a = load(x[t][i]), b = load(x[t][i + half]);
        A c = cosine[i - head], s = sign * sine[i - head];
        put(y[t][i], mode, a * c - b * s);
        put(y[t][i + half], mode, b * c + a * s);
      }
  }
}

// ---- fast path: all heads of one row ----------------------------------------------------------

template <bool add, class T>
LK_SIMD void rope_row(T* y, const T* x, const float* cosine, float sign, std::int64_t cols,
                      std::int64_t half) {
  const float* sine = cosine + half;
  for (std::int64_t head = 0; head < cols; head += 2 * half) {
    const T *low = x + head, *high = low + half;
    T *y_low = y + head, *y_high = y_low + half;
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = widen(low[i]), b = widen(high[i]), c = cosine[i], s = sign * sine[i];
      const float first = a * c - b * s, second = b * c + a * s;
      y_low[i] = narrow<T>(add ? widen(y_low[i]) + first : first);
      y_high[i] = narrow<T>(add ? widen(y_high[i]) + second : second);
    }
  }
}

}  // namespace

void CpuBackend::rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
                      const Tensor& positions, int head_dim, bool inverse) {
  const auto* position = positions.data<std::int32_t>();
  check_rows(position, x.rows(), table.rows());
  dispatch_float(x.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
        Matrix<float> angles = matrix<float>(table);
        auto all_rows = [&]<bool add>() {
          parallel_for(from.rows, x.numel(), [&](std::int64_t t) {
            rope_row<add>(to[t], from[t], angles[position[t]], inverse ? -1.0f : 1.0f, from.cols,
                          head_dim / 2);
          });
        };
        return mode == GradMode::Add ? all_rows.template operator()<true>()
                                     : all_rows.template operator()<false>();
      }
    rope_plain(matrix<T>(y), mode, matrix<T>(x), matrix<A>(table), position, head_dim,
               inverse ? A(-1) : A(1));
  });
}

}  // namespace lk
