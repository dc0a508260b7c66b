#include "lora/svd.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/error.h"
#include "tensor/philox.h"

namespace lk {
namespace {

using Vector = std::vector<double>;

constexpr double kResidual = 1e-10;
constexpr int kMostSweeps = 60;  // of QL for one eigenvalue: some two are usual

double dot(const Vector& x, const Vector& y) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// y += alpha x
void add(Vector& y, double alpha, const Vector& x) {
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += alpha * x[i];
}

// y = w x, two rows at a time
void multiply(Vector& y, std::span<const float> w, const Vector& x) {
  const std::size_t rows = y.size(), cols = x.size();
  std::size_t i = 0;
  for (; i + 1 < rows; i += 2) {
    const float *a = w.data() + i * cols, *b = a + cols;
    double sum_a = 0, sum_b = 0;
#pragma omp simd reduction(+ : sum_a, sum_b)
    for (std::size_t j = 0; j < cols; ++j)
      sum_a += static_cast<double>(a[j]) * x[j], sum_b += static_cast<double>(b[j]) * x[j];
    y[i] = sum_a, y[i + 1] = sum_b;
  }
  if (i < rows) {
    double sum = 0;
    for (std::size_t j = 0; j < cols; ++j) sum += static_cast<double>(w[i * cols + j]) * x[j];
    y[i] = sum;
  }
}

// y = wᵀ x, four rows at a time
void multiply_transposed(Vector& y, std::span<const float> w, const Vector& x) {
  const std::size_t rows = x.size(), cols = y.size();
  std::fill(y.begin(), y.end(), 0.0);
  std::size_t i = 0;
  for (; i + 3 < rows; i += 4) {
    const float *a = w.data() + i * cols, *b = a + cols, *c = b + cols, *d = c + cols;
    const double p = x[i], q = x[i + 1], r = x[i + 2], s = x[i + 3];
    for (std::size_t j = 0; j < cols; ++j)
      y[j] += p * static_cast<double>(a[j]) + q * static_cast<double>(b[j]) +
              r * static_cast<double>(c[j]) + s * static_cast<double>(d[j]);
  }
  for (; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j) y[j] += x[i] * static_cast<double>(w[i * cols + j]);
}

// An orthonormal basis that grows by a vector at a time.
class Basis {
 public:
  explicit Basis(std::int64_t dimension) : dimension_(dimension) {}
  const Vector& operator[](std::size_t i) const { return vectors_[i]; }
  std::size_t size() const { return vectors_.size(); }

  // Adds what is new in x, made a unit vector, and returns its length in x. If x has nothing new (to
  // rounding, beside `scale`), adds some other direction and returns 0.
  double extend(Vector x, double scale) {
    orthogonalise(x);
    double length = std::sqrt(dot(x, x));
    const bool nothing = !(length > 1e-13 * scale);
    double unit = length;
    while (nothing && vectors_.size() < static_cast<std::size_t>(dimension_)) {
      for (std::int64_t i = 0; i < dimension_; ++i)
        x[static_cast<std::size_t>(i)] =
            philox_uniform(
                philox_at({dimension_seed(), draws_, 0}, static_cast<std::uint64_t>(i)).v[0]) -
            0.5;
      ++draws_;
      orthogonalise(x);
      unit = std::sqrt(dot(x, x));
      if (unit > 1e-6) break;
    }
    if (unit > 0)
      for (double& v : x) v /= unit;
    vectors_.push_back(std::move(x));
    return nothing ? 0 : length;
  }

 private:
  std::uint64_t dimension_seed() const { return static_cast<std::uint64_t>(dimension_); }
  // Twice: the second time removes what rounding left the first time.
  void orthogonalise(Vector& x) const {
    for (int time = 0; time < 2; ++time)
      for (const Vector& v : vectors_) add(x, -dot(v, x), v);
  }

  std::int64_t dimension_;
  std::uint64_t draws_ = 0;
  std::vector<Vector> vectors_;
};

// The eigenvalues (into d) and eigenvectors (rows of z) of the symmetric tridiagonal matrix with
// diagonal d and off-diagonal e.
void tridiagonal_eigen(Vector& d, Vector e, std::vector<Vector>& z) {
  const std::size_t n = d.size();
  e.resize(n, 0.0);
  z.assign(n, Vector(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) z[i][i] = 1;
  for (std::size_t l = 0; l < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      check(sweep < kMostSweeps, "singular values: QL does not converge");
      std::size_t m = l;
      while (m + 1 < n && std::abs(e[m]) > 1e-16 * (std::abs(d[m]) + std::abs(d[m + 1]))) ++m;
      if (m == l) break;
      double g = (d[l + 1] - d[l]) / (2 * e[l]);
      g = d[m] - d[l] + e[l] / (g + std::copysign(std::hypot(g, 1.0), g));
      double s = 1, c = 1, p = 0;
      bool split = false;
      for (std::size_t i = m; i-- > l;) {
        const double f = s * e[i], b = c * e[i], r = std::hypot(f, g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p, e[m] = 0;
          split = true;
          break;
        }
        s = f / r, c = g / r, g = d[i + 1] - p;
        const double t = (d[i] - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        double *low = z[i].data(), *high = z[i + 1].data();
        for (std::size_t k = 0; k < n; ++k) {
          const double h = high[k];
          high[k] = s * low[k] + c * h;
          low[k] = c * low[k] - s * h;
        }
      }
      if (split) continue;
      d[l] -= p, e[l] = g, e[m] = 0;
    }
  }
}

// W V = U B with B upper bidiagonal: alpha on its diagonal, beta above it. The last of beta is the
// length of what W's transpose makes of U beyond V.
struct Bidiagonal {
  Basis u, v;
  Vector alpha, beta;
};

// The largest singular values of B and the coordinates of its singular vectors.
struct SmallTerms {
  Vector s;
  std::vector<Vector> p, q;  // B = sum of s p qᵀ
  bool converged = false;
};

SmallTerms small_terms(const Bidiagonal& b, std::size_t rank) {
  const std::size_t k = b.alpha.size();
  Vector d(k), e;  // of Bᵀ B
  for (std::size_t i = 0; i < k; ++i) {
    d[i] = b.alpha[i] * b.alpha[i] + (i > 0 ? b.beta[i - 1] * b.beta[i - 1] : 0);
    if (i + 1 < k) e.push_back(b.alpha[i] * b.beta[i]);
  }
  std::vector<Vector> z;
  tridiagonal_eigen(d, e, z);
  std::vector<std::size_t> order(k);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return d[i] > d[j]; });
  SmallTerms terms;
  terms.converged = true;
  for (std::size_t t = 0; t < rank; ++t) {
    const Vector& q = z[order[t]];
    Vector p(k);  // B q / s
    for (std::size_t i = 0; i < k; ++i)
      p[i] = b.alpha[i] * q[i] + (i + 1 < k ? b.beta[i] * q[i + 1] : 0);
    const double s = std::sqrt(dot(p, p));
    for (double& x : p) x = s > 0 ? x / s : 0;
    terms.s.push_back(s);
    terms.converged =
        terms.converged && b.beta.back() * std::abs(p.back()) <= kResidual * terms.s[0];
    terms.p.push_back(std::move(p)), terms.q.push_back(q);
  }
  return terms;
}

}  // namespace

ThinProduct largest_terms(std::span<const float> w, std::int64_t rows, std::int64_t cols,
                          std::int64_t rank) {
  const auto M = static_cast<std::size_t>(rows), N = static_cast<std::size_t>(cols),
             R = static_cast<std::size_t>(rank), most = std::min(M, N);
  check(R >= 1 && R <= most && w.size() == M * N, "largest_terms: rank ", rank, " of ", rows, " x ",
        cols);
  double scale = 0;
  for (float x : w) scale += static_cast<double>(x) * static_cast<double>(x);
  scale = std::sqrt(scale);
  // The Krylov space of V ends with V's dimension, so V gets the narrow side: that of W, or of its
  // transpose.
  const bool wide = cols > rows;
  auto forward = [&](Vector& y, const Vector& x) {
    if (wide)
      multiply_transposed(y, w, x);
    else
      multiply(y, w, x);
  };
  auto backward = [&](Vector& y, const Vector& x) {
    if (wide)
      multiply(y, w, x);
    else
      multiply_transposed(y, w, x);
  };
  Bidiagonal b{Basis(std::max(rows, cols)), Basis(std::min(rows, cols)), {}, {}};
  Vector x(std::max(M, N)), y(most, 0.0);
  b.v.extend(y, 1);  // any direction
  SmallTerms terms;
  for (std::size_t next_look = std::min(most, 4 * R + 16);;) {
    const std::size_t k = b.alpha.size();
    forward(x, b.v[k]);
    if (k > 0) add(x, -b.beta[k - 1], b.u[k - 1]);
    b.alpha.push_back(b.u.extend(x, scale));
    backward(y, b.u[k]);
    add(y, -b.alpha[k], b.v[k]);
    b.beta.push_back(k + 1 < most ? b.v.extend(y, scale) : 0);
    if (k + 1 < next_look) continue;
    terms = small_terms(b, R);
    if (terms.converged || k + 1 >= most) break;
    next_look = std::min(most, next_look + next_look / 3 + 8);
  }
  ThinProduct out{rows, cols, rank, Vector(M * R), Vector(R * N)};
  for (std::size_t t = 0; t < R; ++t) {
    const double root = std::sqrt(terms.s[t]);
    Vector left(M), right(N);
    for (std::size_t i = 0; i < terms.p[t].size(); ++i) {
      add(left, root * (wide ? terms.q : terms.p)[t][i], (wide ? b.v : b.u)[i]);
      add(right, root * (wide ? terms.p : terms.q)[t][i], (wide ? b.u : b.v)[i]);
    }
    for (std::size_t i = 0; i < M; ++i) out.left[i * R + t] = left[i];
    std::copy(right.begin(), right.end(), out.right.begin() + static_cast<std::ptrdiff_t>(t * N));
  }
  return out;
}

ThinProduct leading_qr(std::span<const float> w, std::int64_t rows, std::int64_t cols,
                       std::int64_t rank) {
  const auto M = static_cast<std::size_t>(rows), N = static_cast<std::size_t>(cols),
             R = static_cast<std::size_t>(rank);
  check(R >= 1 && R <= std::min(M, N) && w.size() == M * N, "leading_qr: rank ", rank, " of ", rows,
        " x ", cols);
  Basis q(rows);
  ThinProduct out{rows, cols, rank, Vector(M * R), Vector(R * N)};
  for (std::size_t t = 0; t < R; ++t) {
    Vector column(M), right(N);
    for (std::size_t i = 0; i < M; ++i) column[i] = static_cast<double>(w[i * N + t]);
    const double length = std::sqrt(dot(column, column));
    q.extend(std::move(column), length);
    multiply_transposed(right, w, q[t]);
    std::fill(right.begin(), right.begin() + static_cast<std::ptrdiff_t>(t), 0.0);
    for (std::size_t i = 0; i < M; ++i) out.left[i * R + t] = q[t][i];
    std::copy(right.begin(), right.end(), out.right.begin() + static_cast<std::ptrdiff_t>(t * N));
  }
  return out;
}

}  // namespace lk
