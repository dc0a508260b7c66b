#include "cpu/fast/few_rows.h"

#include <algorithm>
#include <vector>

#include "cpu/fast/simd.h"

namespace lk::cpu {
namespace {

// out[m] = w . x[m], x (M,K) contiguous.
template <class T, int M>
LK_SIMD void row_dots(float* out, const T* w, const float* x, std::int64_t K) {
  Eight sum[M][2] = {};
  std::int64_t k = 0;
  for (; k + 16 <= K; k += 16) {
    const Eight low = load_eight(w + k), high = load_eight(w + k + 8);
    for (int m = 0; m < M; ++m) {
      sum[m][0] += low * load_eight(x + m * K + k);
      sum[m][1] += high * load_eight(x + m * K + k + 8);
    }
  }
  for (int m = 0; m < M; ++m) {
    float total = add_up(sum[m][0] + sum[m][1]);
    for (std::int64_t j = k; j < K; ++j) total += widen(w[j]) * x[m * K + j];
    out[m] = total;
  }
}

template <class T, int M>
void few_rows(Matrix<T> y, const float* x, Matrix<T> w) {
  constexpr std::int64_t kPieceRows = 32;
  parallel_for((w.rows + kPieceRows - 1) / kPieceRows, w.rows * w.cols, [&](std::int64_t piece) {
    for (std::int64_t j = piece * kPieceRows; j < std::min(w.rows, (piece + 1) * kPieceRows); ++j) {
      float out[M];
      row_dots<T, M>(out, w[j], x, w.cols);
      for (int m = 0; m < M; ++m) y[m][j] = narrow<T>(out[m]);
    }
  });
}

}  // namespace

void linear_few_rows(const Tensor& y, const Tensor& x, const Tensor& w) {
  const std::int64_t M = x.rows(), K = x.cols();
  check(M <= kFewRows, "linear_few_rows: ", M, " rows");
  auto go = [&]<class T>(T) {
    const Matrix<T> rows = matrix<T>(x);
    std::vector<float> wide(static_cast<std::size_t>(M * K));
    for (std::int64_t m = 0; m < M; ++m)
      for (std::int64_t k = 0; k < K; ++k)
        wide[static_cast<std::size_t>(m * K + k)] = widen(rows[m][k]);
    auto run = [&]<int N>() { few_rows<T, N>(matrix<T>(y), wide.data(), matrix<T>(w)); };
    switch (M) {
      case 1:
        return run.template operator()<1>();
      case 2:
        return run.template operator()<2>();
      case 3:
        return run.template operator()<3>();
      case 4:
        return run.template operator()<4>();
      case 5:
        return run.template operator()<5>();
      case 6:
        return run.template operator()<6>();
      case 7:
        return run.template operator()<7>();
      case 8:
        return run.template operator()<8>();
      default:
        return;
    }
  };
  w.dtype() == DType::F32 ? go(float{}) : go(bf16{});
}

}  // namespace lk::cpu
