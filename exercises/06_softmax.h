// 6. Beat the plain softmax kernel.
//
// softmax(x)_j = exp(x_j - max) / sum_k exp(x_k - max), for each row of a matrix in F32, in place.
// Below is the plain kernel: three passes, and exp twice for each element. Write a faster one. The
// test compares both on 512 rows of 2,048, on one thread, and wants yours in two thirds of the
// time.
//
// Hints
// - Measure before you think: exp takes most of the time, and half of its calls are unnecessary.
// - g++ vectorises a loop whose body has no call and no branch. std::exp is a call; a polynomial is
//   not. exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2. Six terms after the 1
//   reach F32's precision, nearly; 2^n is the float whose exponent bits are n + 127
//   (std::bit_cast).
// - Far below zero, exp is 0. An if is a branch; clearing bits by a mask, -(x >= limit), is none.
// - round(v), without a call, is (v + 12582912.0f) - 12582912.0f, as 12582912 = 1.5 * 2^23.
// - g++ may not reorder a sum of floats, unless `#pragma omp simd reduction(+ : sum)` before the
//   loop allows it.
// - Results may differ from the plain ones by 1e-6 + 1e-5 of their value. Rows have any length.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace lk::exercise {

// ---- your code ----
inline void softmax_rows(float* x, std::int64_t rows, std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i, x += cols) {
    float largest = x[0], sum = 0;
    for (std::int64_t j = 1; j < cols; ++j) largest = std::max(largest, x[j]);
    for (std::int64_t j = 0; j < cols; ++j) sum += std::exp(x[j] - largest);
    for (std::int64_t j = 0; j < cols; ++j) x[j] = std::exp(x[j] - largest) / sum;
  }
}
// ---- end ----

}  // namespace lk::exercise
