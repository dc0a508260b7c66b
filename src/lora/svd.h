// The part of a matrix that PiSSA and OLoRA start from, computed in F64 on the calling thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lk {

// A product of two thin matrices, in F64: left (rows, rank) and right (rank, cols), both row-major.
struct ThinProduct {
  std::int64_t rows = 0, cols = 0, rank = 0;
  std::vector<double> left, right;
};

// The best approximation of w (rows, cols) by a matrix of `rank` at most, from the largest terms of
// its singular value decomposition U S Vᵀ: left = U sqrt(S), right = sqrt(S) Vᵀ. The signs of a
// column of U and its row of Vᵀ are free. rank is at most min(rows, cols).
//
// Golub, Kahan and Lanczos's bidiagonalisation with full reorthogonalisation (Golub & Kahan 1965;
// Simon & Zha 2000), which needs w only in products with vectors: it ends once the residuals of
// all wanted terms are below 1e-10 of the largest singular value. For the singular values of the
// small bidiagonal matrix: implicit QL (Wilkinson & Reinsch 1971, tql2). Deterministic.
ThinProduct largest_terms(std::span<const float> w, std::int64_t rows, std::int64_t cols,
                          std::int64_t rank);

// With w = Q R, R upper triangular: left is the first `rank` columns of Q, right the first rows of
// R. By Gram and Schmidt, each column orthogonalised twice. The signs of a column of Q and its row
// of R are free.
ThinProduct leading_qr(std::span<const float> w, std::int64_t rows, std::int64_t cols,
                       std::int64_t rank);

}  // namespace lk
