// The CUDA backend's attention, forward and backward, against the F64 twin within derived bounds.
//
// Note [Attention's bound]. A score is a product of D terms, so it is uncertain by 4 * 2^-24 scale
// sum |q||k|, and so, relatively, is its probability; the tensor-core path also rounds p and ds to
// BF16 (u = 2^-8) before the second product. With e = that relative error of a probability:
//   o    u_out |o|  + e sum_j p |v|
//   dv   u_out |dv| + e sum_i p |dout|
//   ds   e |p (dp - delta)| + c 2^-24 p (sum |dout||v| + sum |dout||o|)
//   dq   u_out |dq| + sum_j ds |k|,  dk alike with |q|
#include "nn/cached_ops.h"
#include "parity.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Setup {
  DType dtype = DType::BF16;
  int heads = 4, kv_heads = 2, head_dim = 64, window = 0;
  std::vector<std::int32_t> q_offsets, k_offsets;  // k_offsets empty: the same
  Layout layout = kContiguous;

  std::string str() const {
    std::string s = concat("attention ", dtype_name(dtype), " H ", heads, " G ", kv_heads, " D ",
                           head_dim, " window ", window, " pad ", layout.pad, " rows");
    for (std::int32_t x : q_offsets) s += concat(" ", x);
    if (!k_offsets.empty()) s += " keys";
    for (std::int32_t x : k_offsets) s += concat(" ", x);
    return s;
  }
  const std::vector<std::int32_t>& keys() const {
    return k_offsets.empty() ? q_offsets : k_offsets;
  }
  AttentionShape shape() const {
    return {heads, kv_heads, head_dim, static_cast<float>(1.0 / std::sqrt(head_dim)), window};
  }
  std::int64_t n_q() const { return q_offsets.back(); }
  std::int64_t n_k() const { return keys().back(); }
  std::int64_t multiplications() const { return heads * n_q() * n_k() * head_dim; }
  // The relative error of a probability. sum |q||k| is about D * 2/pi, and never above 4 D for
  // normal numbers.
  double epsilon() const {
    return 0x1p-24 * (16 + 16 * std::sqrt(head_dim)) + (dtype == DType::BF16 ? 0x1p-8 : 0);
  }
};

// Calls f(head, query row, key row) for all pairs in which the query sees the key; heads of different
// keys on different threads.
template <class F>
void for_each_pair(const Setup& s, F&& f) {
#pragma omp parallel for
  for (int kv_head = 0; kv_head < s.kv_heads; ++kv_head)
    for (std::size_t doc = 0; doc + 1 < s.q_offsets.size(); ++doc) {
      const int q0 = s.q_offsets[doc], n_q = s.q_offsets[doc + 1] - q0,
                group = s.heads / s.kv_heads;
      const int k0 = s.keys()[doc], n_k = s.keys()[doc + 1] - k0, shift = n_k - n_q;
      for (int h = kv_head * group; h < (kv_head + 1) * group; ++h)
        for (int i = 0; i < n_q; ++i)
          for (int j = s.window == 0 ? 0 : std::max(0, i + shift - s.window + 1); j <= i + shift;
               ++j)
            f(h, q0 + i, k0 + j);
    }
}

std::vector<Guarded> forward(const Setup& a, const Side& s) {
  Guarded q = numbers(s, a.n_q(), a.heads * a.head_dim, 1),
          k = numbers(s, a.n_k(), a.kv_heads * a.head_dim, 2),
          v = numbers(s, a.n_k(), a.kv_heads * a.head_dim, 3),
          o = numbers(s, a.n_q(), a.heads * a.head_dim, 4),
          lse = statistics(s, a.heads, a.n_q(), 5);
  s.backend.attention_forward(o, lse, q, k, v, a.shape(), make_segments(s.backend, a.q_offsets),
                              make_segments(s.backend, a.keys()));
  return {o, lse};
}

void check_forward(const Setup& a) {
  if (left_out(a.multiplications())) return;
  Results r = compare(a.str(), a.dtype, a.layout, [&](const Side& s) { return forward(a, s); });
  // sum p |v| by the oracle itself
  Side s{oracle(), DType::F64, a.dtype, kContiguous};
  Guarded q = numbers(s, a.n_q(), a.heads * a.head_dim, 1),
          k = numbers(s, a.n_k(), a.kv_heads * a.head_dim, 2),
          o = numbers(s, a.n_q(), a.heads * a.head_dim, 4),
          lse = statistics(s, a.heads, a.n_q(), 5);
  Tensor v = tensor_from(oracle(), DType::F64, {a.n_k(), a.kv_heads * a.head_dim},
                         magnitudes(a.dtype, a.n_k() * a.kv_heads * a.head_dim, 3));
  oracle().attention_forward(o, lse, q, k, v, a.shape(), make_segments(oracle(), a.q_offsets),
                             make_segments(oracle(), a.keys()));
  std::vector<double> slack = o.values("size");
  for (double& x : slack) x = x * a.epsilon() + 1e-30;
  check_close(r.got[0], r.want[0], unit_roundoff(a.dtype), slack, a.str() + " o");
  check_close(r.got[1], r.want[1], 0x1p-23, {0x1p-24 * (16 + 16 * std::sqrt(a.head_dim))},
              a.str() + " lse");
}

// dq, dk, dv from given o and lse, which were rounded once for both sides. With `rope`, dq and dk
// are rotated back.
std::vector<Guarded> backward(const Setup& a, const Side& s, const std::vector<double>& o_values,
                              const std::vector<double>& lse_values, bool rope = false) {
  std::int64_t T = a.n_q(), HD = a.heads * a.head_dim, GD = a.kv_heads * a.head_dim;
  Guarded q = numbers(s, T, HD, 1), k = numbers(s, T, GD, 2), v = numbers(s, T, GD, 3);
  Guarded o(s.backend, s.dtype, T, HD, s.layout, o_values);
  Guarded lse(s.backend, s.stat(), a.heads, T, kContiguous, lse_values);
  Guarded dout = numbers(s, T, HD, 6), dq = numbers(s, T, HD, 7), dk = numbers(s, T, GD, 8),
          dv = numbers(s, T, GD, 9);
  const Segments segments = make_segments(s.backend, a.q_offsets);
  const Rotation turned = rope ? rotation(s, T, a.head_dim) : Rotation{};
  s.backend.attention_backward(dq, dk, dv, dout, q, k, v, o, lse, a.shape(), segments,
                               rope ? &turned : nullptr);
  return {dq, dk, dv};
}

struct Given {
  std::vector<double> o, lse;
};
Given given(const Setup& a) {
  Side s{oracle(), DType::F64, a.dtype, kContiguous};
  std::vector<Guarded> out = forward(a, s);
  return {rounded(out[0].values("o"), a.dtype), rounded(out[1].values("lse"), DType::F32)};
}

// Bounds after rotating back: a pair (a, b) of halves of each head becomes
// (a cos + b sin, b cos - a sin). The bounds add up, and where the rotation is a separate op, a and
// b were rounded before it.
std::vector<double> turned(const std::vector<double>& slack, const std::vector<double>& values,
                           int head_dim, double u) {
  std::vector<double> out(slack.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t D = static_cast<std::size_t>(head_dim), in_head = i % D,
                      j = in_head < D / 2 ? i + D / 2 : i - D / 2;
    out[i] = slack[i] + slack[j] + (u + 4 * 0x1p-24) * (std::abs(values[i]) + std::abs(values[j]));
  }
  return out;
}

void check_backward(const Setup& a, bool rope = false) {
  if (left_out(a.multiplications())) return;
  Given g = given(a);
  Results r = compare(a.str(), a.dtype, a.layout,
                      [&](const Side& s) { return backward(a, s, g.o, g.lse, rope); });
  std::int64_t T = a.n_q(), D = a.head_dim, HD = a.heads * D, GD = a.kv_heads * D;
  std::vector<double> q = rounded(random_values(T * HD, 1), a.dtype),
                      k = rounded(random_values(T * GD, 2), a.dtype),
                      v = rounded(random_values(T * GD, 3), a.dtype),
                      dout = rounded(random_values(T * HD, 6), a.dtype);
  std::vector<double> dq_slack(q.size(), 1e-30), dk_slack(k.size(), 1e-30),
      dv_slack(v.size(), 1e-30);
  double scale = a.shape().scale, e = a.epsilon();
  for_each_pair(a, [&](int h, int i, int j) {
    const double *qi = &q[i * HD + h * D], *di = &dout[i * HD + h * D], *oi = &g.o[i * HD + h * D];
    std::int64_t kv = j * GD + h / (a.heads / a.kv_heads) * D;
    double score = 0, dp = 0, delta = 0, sizes = 0;
    for (int d = 0; d < D; ++d) {
      score += qi[d] * k[kv + d];
      dp += di[d] * v[kv + d];
      delta += di[d] * oi[d];
      sizes += std::abs(di[d]) * (std::abs(v[kv + d]) + std::abs(oi[d]));
    }
    double p = std::exp(scale * score - g.lse[h * T + i]);
    double ds = scale * p * (e * std::abs(dp - delta) + 8 * 0x1p-24 * sizes);
    for (int d = 0; d < D; ++d) {
      dq_slack[i * HD + h * D + d] += ds * std::abs(k[kv + d]);
      dk_slack[kv + d] += ds * std::abs(qi[d]);
      dv_slack[kv + d] += e * p * std::abs(di[d]);
    }
  });
  double u = unit_roundoff(a.dtype);
  if (rope) {
    dq_slack = turned(dq_slack, r.want[0], a.head_dim, 2 * u);
    dk_slack = turned(dk_slack, r.want[1], a.head_dim, 2 * u);
  }
  check_close(r.got[0], r.want[0], u, dq_slack, a.str() + " dq");
  check_close(r.got[1], r.want[1], u, dk_slack, a.str() + " dk");
  check_close(r.got[2], r.want[2], u, dv_slack, a.str() + " dv");
}

// One document, several (one empty, some of one row), lengths around the tiles' edges.
const std::vector<std::vector<std::int32_t>> kPackings = {
    {0, 1}, {0, 37}, {0, 64}, {0, 65}, {0, 200}, {0, 1, 2, 67, 67, 130, 259}};

}  // namespace

TEST_CASE("cuda: attention of packed documents, all head sizes") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int head_dim : {6, 7, 8, 40, 50, 64, 72, 80, 96, 128, 136, 160, 192, 256})
      for (const auto& offsets : kPackings) {
        if (head_dim > 128 && offsets.back() > 100) continue;  // the oracle takes its time
        Setup a{.dtype = t, .head_dim = head_dim, .q_offsets = offsets, .k_offsets = {}};
        check_forward(a);
        check_backward(a);
      }
}

TEST_CASE("cuda: attention's backward turns dq and dk back") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int head_dim : {6, 40, 64, 80, 128, 192, 256})
      for (const auto& offsets : kPackings)
        for (Layout l : {kContiguous, kStrided}) {
          // The oracle takes its time.
          const bool brief = head_dim == 80 || head_dim > 128;
          if (brief && (t == DType::F32 || offsets.back() < 200)) continue;
          check_backward({.dtype = t,
                          .head_dim = head_dim,
                          .q_offsets = offsets,
                          .k_offsets = {},
                          .layout = l},
                         true);
        }
}

// Head sizes with kernels of their own on some GPUs, and two that are padded to them; their tiles
// have 32, 64 and 128 rows.
TEST_CASE("cuda: attention at the edges of tiles") {
  LK_NEEDS_GPU();
  const std::vector<std::vector<std::int32_t>> packings = {
      {0, 63}, {0, 64}, {0, 127}, {0, 128}, {0, 129}, {0, 300}, {0, 1, 64, 128, 193, 320, 449}};
  for (int head_dim : {64, 96, 128, 160, 256})
    for (const auto& offsets : packings)
      for (int window : {0, 70}) {
        if (window > 0 && offsets.back() < 300) continue;
        if (head_dim % 64 != 0 && offsets.size() == 2) continue;
        Setup a{.head_dim = head_dim, .window = window, .q_offsets = offsets, .k_offsets = {}};
        check_forward(a);
        check_backward(a);
      }
}

TEST_CASE("cuda: attention over many rows") {
  LK_NEEDS_GPU();
  for (int head_dim : {64, 128, 256}) {
    const int rows = head_dim == 256 ? 1024 : 2048;  // the oracle takes its time
    Setup a{
        .heads = 2, .kv_heads = 1, .head_dim = head_dim, .q_offsets = {0, rows}, .k_offsets = {}};
    check_forward(a);
    check_backward(a);
  }
}

// Where there are more tiles of queries than multiprocessors, a block takes one after the other.
TEST_CASE("cuda: attention of more tiles than multiprocessors") {
  LK_NEEDS_GPU();
  for (int head_dim : {64, 96, 128, 192, 256}) {
    check_forward({.heads = 200,
                   .kv_heads = 100,
                   .head_dim = head_dim,
                   .q_offsets = {0, 32},
                   .k_offsets = {}});
    check_forward({.heads = 32,
                   .kv_heads = 8,
                   .head_dim = head_dim,
                   .window = head_dim == 96 ? 100 : 0,
                   .q_offsets = {0, 1, 130, 130, 500, 837},
                   .k_offsets = {},
                   .layout = kStrided});
    check_forward({.heads = 64,
                   .kv_heads = 64,
                   .head_dim = head_dim,
                   .q_offsets = {0, 60, 190},
                   .k_offsets = {0, 60, 700}});
  }
}

// Documents of a thousand tokens and more have a kernel for the whole of backward, whose blocks take turns.
TEST_CASE("cuda: attention's backward over long documents") {
  LK_NEEDS_GPU();
  for (int head_dim : {64, 96, 128}) {
    // It takes many keys of all heads; windows spare the oracle most of them.
    Setup one{.heads = 32,
              .kv_heads = 32,
              .head_dim = head_dim,
              .window = head_dim == 64 ? 0 : 150,
              .q_offsets = {0, 1100},
              .k_offsets = {},
              .layout = kStrided};
    check_backward(one, head_dim != 96);
    check_backward({.heads = 32,
                    .kv_heads = 16,
                    .head_dim = head_dim,
                    .window = 60,
                    .q_offsets = {0, 700, 2100},
                    .k_offsets = {}});
  }
}

TEST_CASE("cuda: attention with all ways of grouping heads") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (auto [heads, kv_heads] : {std::pair{1, 1}, {3, 3}, {6, 2}, {5, 1}}) {
      Setup a{.dtype = t,
              .heads = heads,
              .kv_heads = kv_heads,
              .q_offsets = {0, 70, 150},
              .k_offsets = {}};
      check_forward(a);
      check_backward(a);
    }
}

// With few keys, several blocks share the queries of a key: one, two, four or eight blocks here, of
// which some have nothing to do.
TEST_CASE("cuda: attention of many queries to the keys of few heads") {
  LK_NEEDS_GPU();
  auto with = [](int head_dim, int heads, int kv_heads, std::vector<std::int32_t> offsets,
                 int window = 0) {
    return Setup{.heads = heads,
                 .kv_heads = kv_heads,
                 .head_dim = head_dim,
                 .window = window,
                 .q_offsets = std::move(offsets),
                 .k_offsets = {}};
  };
  for (const Setup& a :
       {with(64, 8, 1, {0, 1030}), with(64, 5, 1, {0, 1030}), with(128, 8, 1, {0, 1030}),
        with(128, 5, 1, {0, 1030}, 700), with(256, 1, 1, {0, 63, 64, 264}),
        with(256, 6, 3, {0, 63, 64, 264}, 40), with(256, 2, 1, {0, 390}),
        with(256, 4, 1, {0, 33, 533}), with(256, 5, 1, {0, 390}), with(256, 8, 1, {0, 390}, 100),
        with(192, 8, 1, {0, 520}), with(256, 8, 1, {0, 520})}) {
    check_forward(a);
    check_backward(a, a.heads == 8);
  }
}

TEST_CASE("cuda: attention in column slices of one buffer, aligned and not") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (Layout l : {kStrided, kOdd})
      for (int head_dim : {64, 72, 128, 192, 256}) {
        Setup a{.dtype = t,
                .head_dim = head_dim,
                .q_offsets = {0, 3, 90},
                .k_offsets = {},
                .layout = l};
        check_forward(a);
        check_backward(a);
      }
}

TEST_CASE("cuda: attention in a sliding window") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int window : {1, 5, 64, 100, 1000})
      for (int head_dim : {64, 128, 256}) {
        // The oracle takes its time.
        if (head_dim > 64 && (t == DType::F32 || (window != 64 && window != 100))) continue;
        Setup a{.dtype = t,
                .head_dim = head_dim,
                .window = window,
                .q_offsets = {0, 150, 390},
                .k_offsets = {}};
        check_forward(a);
        check_backward(a);
      }
}

TEST_CASE("cuda: attention with a key/value cache") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int window : {0, 20})
      for (int head_dim : {64, 128, 192, 256})
        for (auto [q, k] :
             {std::pair{std::vector<std::int32_t>{0, 1}, std::vector<std::int32_t>{0, 300}},
              {{0, 1, 2, 3}, {0, 10, 11, 140}},
              {{0, 5, 70}, {0, 5, 200}},
              {{0, 130, 263}, {0, 300, 733}}})
          check_forward(
              {.dtype = t, .head_dim = head_dim, .window = window, .q_offsets = q, .k_offsets = k});
}

TEST_CASE("cuda: decoding from slots of a cache, alone and together, recorded or not") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int window : {0, 20, 300})
      for (auto [heads, kv_heads] : {std::pair{6, 6}, {9, 3}, {16, 1}})
        for (int head_dim : {32, 64, 128, 256}) {
          const std::int64_t slots = 4, capacity = 600;
          const std::vector<std::int32_t> begins{1200, 0, 600}, ends{1201, 600, 1150};
          const AttentionShape shape{heads, kv_heads, head_dim,
                                     static_cast<float>(1 / std::sqrt(head_dim)), window};
          auto run = [&](const Side& s, const std::vector<std::size_t>& which) {
            Guarded k = numbers(s, slots * capacity, kv_heads * head_dim, 2),
                    v = numbers(s, slots * capacity, kv_heads * head_dim, 3);
            Guarded all = numbers(s, 3, heads * head_dim, 1);
            const std::int64_t n = std::ssize(which);
            std::vector<std::int32_t> offsets{0};
            KeyRows rows;
            Guarded q = numbers(s, n, heads * head_dim, 8), o = numbers(s, n, heads * head_dim, 4),
                    lse = statistics(s, heads, n, 5);
            for (std::int64_t i = 0; i < n; ++i) {
              const std::size_t from = which[static_cast<std::size_t>(i)];
              s.backend.copy(q.matrix().slice_rows(i, i + 1),
                             all.matrix().slice_rows(static_cast<std::int64_t>(from),
                                                     static_cast<std::int64_t>(from) + 1));
              offsets.push_back(static_cast<std::int32_t>(i) + 1);
              rows.begins.push_back(begins[from]), rows.ends.push_back(ends[from]);
            }
            rows.device_begins = indices(s, rows.begins), rows.device_ends = indices(s, rows.ends);
            rows.most = capacity;
            s.backend.attention_forward(o, lse, q, k, v, shape, make_segments(s.backend, offsets),
                                        rows);
            return std::vector<Guarded>{o, lse};
          };
          const std::string what = concat("decode ", dtype_name(t), " H ", heads, " G ", kv_heads,
                                          " D ", head_dim, " window ", window);
          Results r = compare(what, t, kContiguous, [&](const Side& s) {
            return run(s, {0, 1, 2});
          });
          // sum p |v| is at most the largest |v|, which is below 6.
          Setup a{.dtype = t, .head_dim = head_dim, .q_offsets = {0}, .k_offsets = {}};
          check_close(r.got[0], r.want[0], unit_roundoff(t), {6 * a.epsilon()}, what + " o");
          check_close(r.got[1], r.want[1], 0x1p-23, {0x1p-24 * (16 + 16 * std::sqrt(head_dim))},
                      what + " lse");
          for (std::size_t i = 0; i < 3; ++i) {
            const std::vector<double> alone = run({gpu(), t, t, kContiguous}, {i})[0].values(what);
            const auto begin = r.got[0].begin() + static_cast<std::ptrdiff_t>(i * alone.size());
            CHECK(alone == std::vector<double>(begin, begin + std::ssize(alone)));
          }
        }
}

TEST_CASE("cuda: a new token is normed, rotated, put into the cache and attends in one launch") {
  LK_NEEDS_GPU();
  const std::int64_t capacity = 200;
  const std::vector<std::int32_t> begins{400, 0, 200, 600}, ends{401, 65, 328, 730},
      last{400, 64, 327, 729};
  struct Made {
    bool normed, turned;
    int window;
  };
  for (DType t : {DType::F32, DType::BF16})
    for (auto [heads, kv_heads] : {std::pair{6, 6}, {8, 4}, {9, 3}, {16, 1}, {24, 2}})
      for (int head_dim : {32, 48, 64, 128, 256})
        for (const Made& how :
             {Made{false, true, 0}, {true, true, 0}, {true, true, 70}, {true, false, 1}}) {
          const std::int64_t n = std::ssize(begins), HD = heads * head_dim,
                             GD = kv_heads * head_dim;
          const AttentionShape shape{heads, kv_heads, head_dim,
                                     static_cast<float>(1 / std::sqrt(head_dim)), how.window};
          // Up to 32 lanes hold a row, 16 bytes each.
          const bool suits = head_dim != 48 && head_dim * dtype_size(t) <= 512;
          auto run = [&](const Side& s) {
            Guarded q = numbers(s, n, HD, 1), k = numbers(s, n, GD, 2), v = numbers(s, n, GD, 3),
                    keys = numbers(s, 4 * capacity, GD, 4),
                    values = numbers(s, 4 * capacity, GD, 5), o = numbers(s, n, HD, 6),
                    lse = statistics(s, shape.n_heads, n, 7), made = numbers(s, n, HD, 8);
            const auto gain = [&](unsigned seed) {
              return Weight("gain", tensor_from(s.backend, s.dtype, {head_dim},
                                                rounded(random_values(head_dim, seed), s.rounded)));
            };
            const Weight q_gain = gain(9), k_gain = gain(10);
            KeyRows rows;
            rows.begins = begins, rows.ends = ends, rows.most = capacity;
            rows.device_begins = indices(s, begins), rows.device_ends = indices(s, ends);
            const Segments segments = make_segments(s.backend, {0, 1, 2, 3, 4});
            const CachedAttention a{.o = o,
                                    .lse = lse,
                                    .q = q,
                                    .k = k,
                                    .v = v,
                                    .q_gain = how.normed ? &q_gain : nullptr,
                                    .k_gain = how.normed ? &k_gain : nullptr,
                                    .eps = 1e-5,
                                    .rotation = how.turned ? rotation(s, n, head_dim) : Rotation{},
                                    .cache = {keys, values, indices(s, last)},
                                    .made_q = made,
                                    .shape = shape,
                                    .q_seg = segments,
                                    .k_rows = rows};
            CacheKernels* kernels = s.backend.cache_kernels();
            if (kernels && suits)
              CHECK(kernels->attend(a));
            else
              cached::attend(s.backend, a);
            if (kernels && suits) {  // the same as of queries and keys that were made before
              Guarded o2 = numbers(s, n, HD, 11), lse2 = statistics(s, shape.n_heads, n, 12);
              s.backend.attention_forward(o2, lse2, made, keys, values, shape, segments, rows);
              CHECK(o2.bytes() == o.bytes());
              CHECK(lse2.bytes() == lse.bytes());
            }
            return std::vector<Guarded>{made, keys, values};
          };
          const std::string what =
              concat("attend ", dtype_name(t), " H ", heads, " G ", kv_heads, " D ", head_dim,
                     how.normed ? " normed" : "", how.turned ? " turned" : "");
          Results r = compare(what, t, kContiguous, run);
          // What is normed is below 30 here, a rotated pair's sum below 42.
          const double u = unit_roundoff(t), slack = (how.normed ? 42 * u : 0) + 42 * 0x1p-20;
          for (std::size_t i : {0, 1}) check_close(r.got[i], r.want[i], u, {slack}, what);
          CHECK(r.got[2] == r.want[2]);
        }
}

TEST_CASE("cuda: attention of no rows") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (const auto& offsets : {std::vector<std::int32_t>{0}, {0, 0}, {0, 0, 0}}) {
      Setup a{.dtype = t, .q_offsets = offsets, .k_offsets = {}};
      Side s{gpu(), t, t, kContiguous};
      forward(a, s);
      backward(a, s, {}, {});
    }
  gpu().synchronize();
}

void check_30_backward_passes(const Setup& a) {
  if (left_out(a.multiplications())) return;
  const Side s{gpu(), a.dtype, a.dtype, kContiguous};
  const std::vector<Guarded> out = forward(a, s);
  const std::int64_t T = a.n_q(), HD = a.heads * a.head_dim, GD = a.kv_heads * a.head_dim;
  const Guarded q = numbers(s, T, HD, 1), k = numbers(s, T, GD, 2), v = numbers(s, T, GD, 3),
                dout = numbers(s, T, HD, 6), dq = numbers(s, T, HD, 7), dk = numbers(s, T, GD, 8),
                dv = numbers(s, T, GD, 9);
  const Segments segments = make_segments(gpu(), a.q_offsets);
  auto run = [&] {
    gpu().attention_backward(dq, dk, dv, dout, q, k, v, out[0], out[1], a.shape(), segments);
    return std::array{dq.bytes(), dk.bytes(), dv.bytes()};
  };
  const auto first = run();
  for (int n = 1; n < 30; ++n) REQUIRE(run() == first);
}

TEST_CASE("cuda: 30 backward passes of attention give the same bits") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16})
    for (int head_dim : {64, 96, 128, 192, 256}) {
      if (head_dim > 128 && t == DType::F32) continue;  // takes its time
      check_30_backward_passes(
          {.dtype = t, .head_dim = head_dim, .q_offsets = {0, 130, 500}, .k_offsets = {}});
    }
}

// Blocks add to dq in turns.
TEST_CASE("cuda: 30 backward passes over a long document give the same bits") {
  LK_NEEDS_GPU();
  for (int head_dim : {64, 96, 128})
    check_30_backward_passes({.heads = 32,
                              .kv_heads = 32,
                              .head_dim = head_dim,
                              .q_offsets = {0, 1500},
                              .k_offsets = {}});
}

TEST_CASE("cuda: a row of attention does not depend on other documents") {
  LK_NEEDS_GPU();
  for (DType t : {DType::F32, DType::BF16}) {
    std::int64_t width = 4 * 64;
    Tensor q = random_tensor(gpu(), t, {300, width}, 1),
           k = random_tensor(gpu(), t, {300, width}, 2),
           v = random_tensor(gpu(), t, {300, width}, 3);
    AttentionShape shape{4, 4, 64, 0.125f, 0};
    auto run = [&](std::vector<std::int32_t> offsets) {
      Tensor o = gpu().empty(Tag::Workspace, t, {300, width}),
             lse = gpu().empty(Tag::Workspace, DType::F32, {4, 300});
      Segments seg = make_segments(gpu(), std::move(offsets));
      gpu().attention_forward(o, lse, q, k, v, shape, seg, seg);
      return to_host_f64(o);
    };
    std::vector<double> before = run({0, 100, 300});
    gpu().fill(q.slice_rows(100, 300), 3.0);
    gpu().fill(k.slice_rows(100, 300), -9.0);
    gpu().fill(v.slice_rows(100, 300), 1e3);
    std::vector<double> after = run({0, 100, 300});
    CHECK(std::equal(before.begin(), before.begin() + 100 * width, after.begin()));
  }
}
