// Attention over keys that all tokens share: the definition, which also serves training. Tokens are
// computed in parallel, and so are the keys' gradients, each of which sums over the tokens in order.
#include "tensor/shared_keys.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// Eight partial sums, which the compiler keeps in a register, added up in order.
template <class T>
accumulate_t<T> dot(const T* a, const T* b, std::int64_t n) {
  constexpr std::int64_t kLanes = 8;
  accumulate_t<T> part[kLanes] = {}, total = 0;
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) part[l] += load(a[i + l]) * load(b[i + l]);
  for (accumulate_t<T> p : part) total += p;
  for (; i < n; ++i) total += load(a[i]) * load(b[i]);
  return total;
}
// sum += f x
template <class T>
void add_multiple(accumulate_t<T>* sum, accumulate_t<T> f, const T* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += f * load(x[i]);
}

template <class T>
struct Problem {
  Matrix<T> q, k, v;
  const std::int32_t* positions;
  std::int64_t first_token, H, group, D, window;
  accumulate_t<T> scale;

  Problem(const Tensor& q_in, const SharedKeys& keys, const AttentionShape& s)
      : q(matrix<T>(q_in)),
        k(matrix<T>(keys.k)),
        v(matrix<T>(keys.v)),
        positions(s.window > 0 ? keys.positions.data<std::int32_t>() : nullptr),
        first_token(keys.first_token),
        H(s.n_heads),
        group(s.n_heads / s.n_kv_heads),
        D(s.head_dim),
        window(s.window),
        scale(static_cast<accumulate_t<T>>(s.scale)) {}

  // The first key that token t sees; it sees all that follow.
  std::int64_t first_seen(std::int64_t t) const {
    if (!positions) return 0;
    return std::clamp<std::int64_t>(first_token + positions[t] - window + 1, 0, k.rows);
  }
  const T* query(std::int64_t t, std::int64_t h) const { return q[t] + h * D; }
  const T* key(std::int64_t j, std::int64_t h) const { return k[j] + h / group * D; }
  const T* value(std::int64_t j, std::int64_t h) const { return v[j] + h / group * D; }
  std::int64_t work() const { return q.rows * H * D * k.rows; }
};

// `size` numbers for each thread of the next parallel region. Allocated outside of it, since no
// exception may leave one.
template <class A>
class Scratch {
 public:
  explicit Scratch(std::int64_t size)
      : size_(size), all_(static_cast<std::size_t>(size * omp_get_max_threads())) {}
  A* mine() { return all_.data() + size_ * omp_get_thread_num(); }

 private:
  std::int64_t size_;
  std::vector<A> all_;
};

template <class T>
void forward(Matrix<T> o, Matrix<accumulate_t<T>> lse, GradMode mode, const Problem<T>& in) {
  using A = accumulate_t<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  const std::int64_t n = in.k.rows, D = in.D;
  Scratch<A> scratch(n + D);
  parallel_for(in.q.rows, in.work(), [&](std::int64_t t) {
    A *score = scratch.mine(), *sum = score + n;
    const std::int64_t first = in.first_seen(t);
    for (std::int64_t h = 0; h < in.H; ++h) {
      const A others = mode == GradMode::Add ? lse[h][t] : kNothing;
      T* to = o[t] + h * D;
      A largest = others;
      for (std::int64_t j = first; j < n; ++j) {
        score[j] = in.scale * dot(in.query(t, h), in.key(j, h), D);
        largest = std::max(largest, score[j]);
      }
      if (largest == kNothing) {
        lse[h][t] = kNothing;
        std::fill(to, to + D, T(0));
        continue;
      }
      const A of_others = std::exp(others - largest);
      A total = of_others;
      std::fill(sum, sum + D, A(0));
      if (mode == GradMode::Add) add_multiple(sum, of_others, to, D);
      for (std::int64_t j = first; j < n; ++j) {
        const A p = std::exp(score[j] - largest);
        total += p;
        add_multiple(sum, p, in.value(j, h), D);
      }
      for (std::int64_t d = 0; d < D; ++d) to[d] = rounded<T>(sum[d] / total);
      lse[h][t] = largest + std::log(total);
    }
  });
}

// p and ds of one token, head and key.
template <class A>
struct Pair {
  A p, ds;
};
template <class T>
Pair<accumulate_t<T>> pair(const Problem<T>& in, const T* dout, std::int64_t t, std::int64_t h,
                           std::int64_t j, accumulate_t<T> lse, accumulate_t<T> delta) {
  using A = accumulate_t<T>;
  const A p = std::exp(in.scale * dot(in.query(t, h), in.key(j, h), in.D) - lse);
  return {p, in.scale * p * (dot(dout, in.value(j, h), in.D) - delta)};
}

// delta, and dq if it is wanted.
template <class T>
void backward_tokens(const Tensor& dq, GradMode mode, Matrix<accumulate_t<T>> delta, Matrix<T> dout,
                     Matrix<T> o, Matrix<accumulate_t<T>> lse, const Problem<T>& in) {
  using A = accumulate_t<T>;
  Scratch<A> scratch(in.D);
  parallel_for(in.q.rows, in.work(), [&](std::int64_t t) {
    A* sum = scratch.mine();
    for (std::int64_t h = 0; h < in.H; ++h) {
      const T* dy = dout[t] + h * in.D;
      delta[h][t] = dot(dy, o[t] + h * in.D, in.D);
      if (!dq) continue;
      std::fill(sum, sum + in.D, A(0));
      for (std::int64_t j = in.first_seen(t); j < in.k.rows; ++j)
        add_multiple(sum, pair(in, dy, t, h, j, lse[h][t], delta[h][t]).ds, in.key(j, h), in.D);
      T* to = dq.data<T>() + t * dq.ld() + h * in.D;
      for (std::int64_t d = 0; d < in.D; ++d) put(to[d], mode, sum[d]);
    }
  });
}

template <class T>
void backward_keys(Matrix<T> dk, Matrix<T> dv, Matrix<accumulate_t<T>> delta, Matrix<T> dout,
                   Matrix<accumulate_t<T>> lse, const Problem<T>& in) {
  using A = accumulate_t<T>;
  const std::int64_t n = in.k.rows, D = in.D;
  Scratch<A> scratch(2 * D);
  parallel_for(n * (in.H / in.group), in.work(), [&](std::int64_t unit) {
    const std::int64_t j = unit % n, g = unit / n;
    A *k_sum = scratch.mine(), *v_sum = k_sum + D;
    std::fill(k_sum, k_sum + 2 * D, A(0));
    for (std::int64_t t = 0; t < in.q.rows; ++t) {
      if (j < in.first_seen(t)) continue;
      for (std::int64_t h = g * in.group; h < (g + 1) * in.group; ++h) {
        const T* dy = dout[t] + h * D;
        const Pair<A> at = pair(in, dy, t, h, j, lse[h][t], delta[h][t]);
        add_multiple(k_sum, at.ds, in.query(t, h), D);
        add_multiple(v_sum, at.p, dy, D);
      }
    }
    for (std::int64_t d = 0; d < D; ++d) {
      dk[j][g * D + d] = rounded<T>(k_sum[d]);
      dv[j][g * D + d] = rounded<T>(v_sum[d]);
    }
  });
}

}  // namespace

void CpuBackend::shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode,
                                     const Tensor& q, const SharedKeys& keys,
                                     const AttentionShape& shape) {
  dispatch_float(q.dtype(), [&]<class T>() {
    forward(matrix<T>(o), matrix<accumulate_t<T>>(lse), mode, Problem<T>(q, keys, shape));
  });
}

void CpuBackend::shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk,
                                      const Tensor& dv, const Tensor& delta, const Tensor& dout,
                                      const Tensor& q, const SharedKeys& keys, const Tensor& o,
                                      const Tensor& lse, const AttentionShape& shape) {
  dispatch_float(q.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Problem<T> in(q, keys, shape);
    backward_tokens(dq, mode, matrix<A>(delta), matrix<T>(dout), matrix<T>(o), matrix<A>(lse), in);
    if (dk)
      backward_keys(matrix<T>(dk), matrix<T>(dv), matrix<A>(delta), matrix<T>(dout), matrix<A>(lse),
                    in);
  });
}

}  // namespace lk
