// The CUDA backend's attention over keys that all tokens share, against the F64 twin within derived
// bounds: those of Note [Attention's bound] in test_parity_attention.cpp, without the rounding of p
// and ds. Add rounds o and dq once more.
#include "parity.h"
#include "tensor/shared_keys.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Setup {
  DType dtype = DType::BF16;
  int heads = 4, kv_heads = 2, head_dim = 64, window = 0;
  std::int64_t tokens = 37, n = 20;
  GradMode mode = GradMode::Add;
  Layout layout = kContiguous;

  std::string str() const {
    return concat("shared keys ", dtype_name(dtype), " H ", heads, " G ", kv_heads, " D ", head_dim,
                  " window ", window, " T ", tokens, " n ", n,
                  mode == GradMode::Add ? " added" : "", " pad ", layout.pad);
  }
  AttentionShape shape() const {
    return {heads, kv_heads, head_dim, static_cast<float>(1.0 / std::sqrt(head_dim)), window};
  }
  // Documents of 11 tokens.
  std::int64_t position(std::int64_t t) const { return t % 11; }
  bool sees(std::int64_t t, std::int64_t j) const {
    return window == 0 || n + position(t) - j < window;
  }
  std::int64_t width() const { return heads * head_dim; }
  std::int64_t kv_width() const { return kv_heads * head_dim; }
  double epsilon() const { return 0x1p-24 * (16 + 16 * std::sqrt(head_dim)); }
};

SharedKeys keys_of(const Setup& a, const Side& s, const Tensor& k, const Tensor& v) {
  std::vector<std::int32_t> positions;
  for (std::int64_t t = 0; t < a.tokens; ++t)
    positions.push_back(static_cast<std::int32_t>(a.position(t)));
  return {k, v, indices(s, positions), a.n};
}

std::vector<Guarded> forward(const Setup& a, const Side& s) {
  Guarded q = numbers(s, a.tokens, a.width(), 1), k = numbers(s, a.n, a.kv_width(), 2),
          v = numbers(s, a.n, a.kv_width(), 3), o = numbers(s, a.tokens, a.width(), 4),
          lse = statistics(s, a.heads, a.tokens, 5);
  s.backend.shared_key_kernels()->shared_keys_forward(o, lse, a.mode, q, keys_of(a, s, k, v),
                                                      a.shape());
  return {o, lse};
}

// From given o and lse, which were rounded once for both sides.
std::vector<Guarded> backward(const Setup& a, const Side& s, const std::vector<double>& o_values,
                              const std::vector<double>& lse_values) {
  Guarded q = numbers(s, a.tokens, a.width(), 1), k = numbers(s, a.n, a.kv_width(), 2),
          v = numbers(s, a.n, a.kv_width(), 3), dout = numbers(s, a.tokens, a.width(), 6),
          dq = numbers(s, a.tokens, a.width(), 7), dk = numbers(s, a.n, a.kv_width(), 8),
          dv = numbers(s, a.n, a.kv_width(), 9), delta = statistics(s, a.heads, a.tokens, 10);
  Guarded o(s.backend, s.dtype, a.tokens, a.width(), s.layout, o_values);
  Guarded lse(s.backend, s.stat(), a.heads, a.tokens, kContiguous, lse_values);
  s.backend.shared_key_kernels()->shared_keys_backward(dq, a.mode, dk, dv, delta, dout, q,
                                                       keys_of(a, s, k, v), o, lse, a.shape());
  return {dq, dk, dv, delta};
}

std::vector<double> finite(std::vector<double> x) {
  for (double& e : x) e = std::isinf(e) ? -1e6 : e;
  return x;
}

void check_setup(const Setup& a) {
  if (left_out(a.heads * a.tokens * a.n * a.head_dim)) return;
  const Results f =
      compare(a.str(), a.dtype, a.layout, [&](const Side& s) { return forward(a, s); });
  const double u = unit_roundoff(a.dtype), e = a.epsilon();
  // sum p |v| is at most the largest number, which is below 6.
  check_close(f.got[0], f.want[0], u, {6 * e}, a.str() + " o");
  check_close(finite(f.got[1]), finite(f.want[1]), 0x1p-23, {e}, a.str() + " lse");

  const std::vector<double> o = rounded(f.want[0], a.dtype),
                            lse = rounded(finite(f.want[1]), DType::F32);
  const Results r =
      compare(a.str(), a.dtype, a.layout, [&](const Side& s) { return backward(a, s, o, lse); });
  const Side s{oracle(), DType::F64, a.dtype, kContiguous};
  const auto q = numbers(s, a.tokens, a.width(), 1).values("q"),
             k = numbers(s, a.n, a.kv_width(), 2).values("k"),
             v = numbers(s, a.n, a.kv_width(), 3).values("v"),
             dout = numbers(s, a.tokens, a.width(), 6).values("dout");
  std::vector<double> dq_slack(q.size(), 1e-30), dk_slack(k.size(), 1e-30),
      dv_slack(k.size(), 1e-30), delta_slack;
  const std::int64_t D = a.head_dim, group = a.heads / a.kv_heads;
  for (std::int64_t h = 0; h < a.heads; ++h)
    for (std::int64_t t = 0; t < a.tokens; ++t) {
      const double* qt = &q[static_cast<std::size_t>(t * a.width() + h * D)];
      const double* dt = &dout[static_cast<std::size_t>(t * a.width() + h * D)];
      const double* ot = &o[static_cast<std::size_t>(t * a.width() + h * D)];
      double delta = 0, sizes = 0;
      for (std::int64_t d = 0; d < D; ++d) delta += dt[d] * ot[d], sizes += std::abs(dt[d] * ot[d]);
      delta_slack.push_back(0x1p-24 * 8 * sizes + 1e-30);
      for (std::int64_t j = 0; j < a.n; ++j) {
        if (!a.sees(t, j)) continue;
        const double* kj = &k[static_cast<std::size_t>(j * a.kv_width() + h / group * D)];
        const double* vj = &v[static_cast<std::size_t>(j * a.kv_width() + h / group * D)];
        double score = 0, dp = 0, both = sizes;
        for (std::int64_t d = 0; d < D; ++d) {
          score += qt[d] * kj[d];
          dp += dt[d] * vj[d];
          both += std::abs(dt[d] * vj[d]);
        }
        const double scale = a.shape().scale;
        const double p = std::exp(scale * score - lse[static_cast<std::size_t>(h * a.tokens + t)]);
        const double ds = scale * p * (e * std::abs(dp - delta) + 8 * 0x1p-24 * both);
        for (std::int64_t d = 0; d < D; ++d) {
          dq_slack[static_cast<std::size_t>(t * a.width() + h * D + d)] += ds * std::abs(kj[d]);
          dk_slack[static_cast<std::size_t>(j * a.kv_width() + h / group * D + d)] +=
              ds * std::abs(qt[d]);
          dv_slack[static_cast<std::size_t>(j * a.kv_width() + h / group * D + d)] +=
              e * p * std::abs(dt[d]);
        }
      }
    }
  // Sums over all rows, in F32, of terms that the bounds above do not contain.
  const double of_sum = 0x1p-24 * 2 * std::sqrt(static_cast<double>(a.tokens * group)) * 8;
  for (double& x : dk_slack) x += of_sum * e;
  check_close(r.got[0], r.want[0], u, dq_slack, a.str() + " dq");
  check_close(r.got[1], r.want[1], u + 0x1p-20, dk_slack, a.str() + " dk");
  check_close(r.got[2], r.want[2], u + 0x1p-20, dv_slack, a.str() + " dv");
  check_close(r.got[3], r.want[3], 0x1p-23, delta_slack, a.str() + " delta");
}

}  // namespace

TEST_CASE("cuda: shared keys, all head sizes and numbers of keys") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (int head_dim : {1, 6, 7, 32, 40, 64, 80, 128, 136, 256})
      for (std::int64_t n : {1, 20, 32, 33, 100})
        for (GradMode mode : kModes)
          check_setup({.dtype = t, .head_dim = head_dim, .n = n, .mode = mode});
}

TEST_CASE("cuda: shared keys with all ways of grouping heads, in rows that are not aligned") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (auto [heads, kv_heads] : {std::pair{1, 1}, {3, 3}, {6, 2}, {5, 1}})
        check_setup({.dtype = t, .heads = heads, .kv_heads = kv_heads, .layout = l});
}

TEST_CASE("cuda: shared keys in a sliding window, where late tokens see none") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (int window : {1, 5, 25, 1000})
      for (GradMode mode : kModes)
        for (std::int64_t n : {3, 40})
          check_setup({.dtype = t, .window = window, .n = n, .mode = mode});
}

TEST_CASE("cuda: many tokens, whose gradients of the keys are sums of several chunks") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (int head_dim : {64, 128})
      check_setup({.dtype = t, .heads = 8, .head_dim = head_dim, .tokens = 1500});
  check_setup({.head_dim = 64, .tokens = 100, .n = 1024});
}

TEST_CASE("cuda: shared keys of no tokens have the gradient zero") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes) {
    const Setup a{.dtype = t, .tokens = 0, .n = 3};
    const Side s{gpu(), t, t, kContiguous};
    forward(a, s);
    const std::vector<Guarded> r = backward(a, s, {}, {});
    CHECK(r[1].values("dk") == std::vector<double>(static_cast<std::size_t>(3 * a.kv_width()), 0));
    CHECK(r[2].values("dv") == std::vector<double>(static_cast<std::size_t>(3 * a.kv_width()), 0));
  }
}
