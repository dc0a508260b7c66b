// Attention against the plain F64 twin: packed documents, grouped heads, windows, caches, odd
// sizes.
#include <omp.h>

#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Case {
  int H, G, D, window;
  std::vector<std::int32_t> queries, keys;  // offsets
};

AttentionShape shape_of(const Case& c) {
  return {c.H, c.G, c.D, static_cast<float>(1 / std::sqrt(static_cast<double>(c.D))), c.window};
}

struct Result {
  std::vector<double> o, lse, dq, dk, dv;
};

// Forward, and backward where every key has its query. All matrices have padded rows.
Result attend(Backend& b, DType dtype, const Case& c, const std::vector<double>& q,
              const std::vector<double>& k, const std::vector<double>& v,
              const std::vector<double>& d) {
  const std::int64_t Tq = c.queries.back(), Tk = c.keys.back(), QD = c.H * c.D, KD = c.G * c.D;
  Segments q_seg = make_segments(b, c.queries), k_seg = make_segments(b, c.keys);
  Tensor Q = padded(b, dtype, Tq, QD, 3, q), K = padded(b, dtype, Tk, KD, 1, k);
  Tensor V = padded(b, dtype, Tk, KD, 2, v), dO = padded(b, dtype, Tq, QD, 5, d);
  Tensor O = padded(b, dtype, Tq, QD, 4, 1u),
         lse = b.empty(Tag::Workspace, stat_dtype(dtype), {c.H, Tq});
  b.attention_forward(O, lse, Q, K, V, shape_of(c), q_seg, k_seg);
  CHECK(padding_intact(O));
  Result r{values(O), values(lse), {}, {}, {}};
  if (c.queries != c.keys) return r;
  Tensor dQ = padded(b, dtype, Tq, QD, 7, 1u), dK = padded(b, dtype, Tk, KD, 6, 1u);
  Tensor dV = padded(b, dtype, Tk, KD, 8, 1u);
  b.attention_backward(dQ, dK, dV, dO, Q, K, V, O, lse, shape_of(c), q_seg);
  CHECK((padding_intact(dQ) && padding_intact(dK) && padding_intact(dV)));
  r.dq = values(dQ), r.dk = values(dK), r.dv = values(dV);
  return r;
}

std::vector<double> rounded_values(DType dtype, std::int64_t n, unsigned seed) {
  return values(random_tensor(reference(), dtype, {1, n}, seed));
}

// How far each result may be off, given the sizes of its summands.
struct Bounds {
  std::vector<double> o, dq, dk, dv;
};

// Bounds for inputs of size about 1. A score is off by at most about D u sum |q||k| scale, which is
// the relative error of p, as is that of dp and of delta; `relative` covers these. `inner` is the
// rounding of p and ds before they are multiplied, `out` that of the stored o, which enters delta.
Bounds bounds_of(const Case& c, const std::vector<double>& q, const std::vector<double>& k,
                 const std::vector<double>& v, const std::vector<double>& d, double relative,
                 double inner, double out) {
  const std::int64_t D = c.D, QD = c.H * D, KD = c.G * D, group = c.H / c.G;
  const double scale = shape_of(c).scale;
  Bounds b{std::vector<double>(q.size()), std::vector<double>(q.size()),
           std::vector<double>(k.size()), std::vector<double>(k.size())};
  auto size = [D](const double* x, const double* y) {
    double sum = 0;
    for (std::int64_t i = 0; i < D; ++i) sum += std::abs(x[i] * y[i]);
    return sum;
  };
  auto dot = [D](const double* x, const double* y) {
    double sum = 0;
    for (std::int64_t i = 0; i < D; ++i) sum += x[i] * y[i];
    return sum;
  };
  for (std::size_t doc = 0; doc + 1 < c.queries.size(); ++doc)
    for (std::int64_t t = c.queries[doc]; t < c.queries[doc + 1]; ++t)
      for (std::int64_t h = 0; h < c.H; ++h) {
        const std::int64_t end = c.keys[doc + 1] - (c.queries[doc + 1] - 1 - t);
        const std::int64_t oldest = c.window > 0 ? end - c.window : 0;
        const std::int64_t begin = std::max<std::int64_t>(c.keys[doc], oldest);
        const std::int64_t at = t * QD + h * D, kv = h / group * D;
        const double *qt = &q[at], *dt = &d[at];
        std::vector<double> p, o(static_cast<std::size_t>(D));
        double total = 0;
        for (std::int64_t j = begin; j < end; ++j)
          p.push_back(std::exp(scale * dot(qt, &k[j * KD + kv])));
        for (double e : p) total += e;
        for (std::int64_t j = begin; j < end; ++j) {
          double& e = p[j - begin];
          e /= total;
          for (std::int64_t i = 0; i < D; ++i) {
            o[i] += e * v[j * KD + kv + i];
            b.o[at + i] += e * (inner + relative) * std::abs(v[j * KD + kv + i]);
          }
        }
        const double delta = dot(dt, o.data());
        const double delta_error = (out + relative) * size(dt, o.data()) + size(dt, &b.o[at]);
        for (std::int64_t j = begin; j < end; ++j) {
          const double *kj = &k[j * KD + kv], *vj = &v[j * KD + kv], e = p[j - begin];
          const double ds = std::abs(e * (dot(dt, vj) - delta));
          const double ds_error =
              scale * ((inner + relative) * ds + e * (relative * size(dt, vj) + delta_error));
          for (std::int64_t i = 0; i < D; ++i) {
            b.dq[at + i] += ds_error * std::abs(kj[i]);
            b.dk[j * KD + kv + i] += ds_error * std::abs(qt[i]);
            b.dv[j * KD + kv + i] += (inner + relative) * e * std::abs(dt[i]);
          }
        }
      }
  return b;
}

void check_case(const Subject& s, const Case& c, unsigned seed, bool rounds_inside) {
  const std::int64_t Tq = c.queries.back(), Tk = c.keys.back();
  auto q = rounded_values(s.dtype, Tq * c.H * c.D, seed),
       d = rounded_values(s.dtype, Tq * c.H * c.D, seed + 1);
  auto k = rounded_values(s.dtype, Tk * c.G * c.D, seed + 2),
       v = rounded_values(s.dtype, Tk * c.G * c.D, seed + 3);
  Result want = attend(reference(), DType::F64, c, q, k, v, d);
  Result got = attend(s.backend, s.dtype, c, q, k, v, d);
  const std::string what =
      concat(s.name, " H ", c.H, " G ", c.G, " D ", c.D, " T ", Tq, " window ", c.window);
  const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24, out = unit_roundoff(s.dtype);
  const double relative = 16 * u * c.D;
  Bounds b = bounds_of(c, q, k, v, d, relative, rounds_inside ? out : 0, out);
  check_close(got.lse, want.lse, stat_dtype(s.dtype) == DType::F64 ? 0x1p-52 : 0x1p-23, {relative},
              what + " lse");
  check_close(got.o, want.o, out, b.o, what + " o");
  if (got.dq.empty()) return;
  check_close(got.dq, want.dq, out, b.dq, what + " dq");
  check_close(got.dk, want.dk, out, b.dk, what + " dk");
  check_close(got.dv, want.dv, out, b.dv, what + " dv");
}

// Checks a case on all backends, and in BF16 also as on a processor without BF16 arithmetic.
void check_case(const Case& c, unsigned seed) {
  const bool native = cpu::best_bf16_tile() != nullptr;
  for (const Subject& s : subjects()) {
    const bool fast_bf16 = &s.backend == &fast() && s.dtype == DType::BF16;
    check_case(s, c, seed, fast_bf16 && native);
    if (!fast_bf16 || !native) continue;
    WithoutBf16Tile widening;
    check_case({"widening bf16", s.backend, s.dtype}, c, seed, false);
  }
}

}  // namespace

TEST_CASE("attention agrees with the F64 twin") {
  check_case({1, 1, 4, 0, {0, 1}, {0, 1}}, 1);
  check_case({2, 1, 8, 0, {0, 5}, {0, 5}}, 2);
  check_case({3, 3, 5, 0, {0, 7, 7, 20}, {0, 7, 7, 20}}, 3);           // an empty document, odd D
  check_case({6, 2, 16, 0, {0, 63, 127, 192}, {0, 63, 127, 192}}, 4);  // block edges
  check_case({9, 3, 64, 0, {0, 64, 130}, {0, 64, 130}}, 5);
  check_case({4, 2, 80, 0, {0, 33}, {0, 33}}, 6);
  check_case({2, 2, 24, 0, {0, 200}, {0, 200}}, 7);
  check_case({2, 1, 33, 0, {0, 51, 152}, {0, 51, 152}}, 8);  // odd D, odd lengths
}

TEST_CASE("sliding windows") {
  check_case({2, 1, 16, 1, {0, 40}, {0, 40}}, 1);
  check_case({2, 1, 16, 10, {0, 100, 150}, {0, 100, 150}}, 2);
  check_case({2, 2, 8, 64, {0, 200}, {0, 200}}, 3);
  check_case({2, 2, 8, 1000, {0, 90}, {0, 90}}, 4);
}

TEST_CASE("queries aligned with the last keys of a cache") {
  check_case({4, 2, 16, 0, {0, 1}, {0, 100}}, 1);
  check_case({4, 2, 16, 0, {0, 1, 6}, {0, 64, 133}}, 2);
  check_case({4, 1, 32, 20, {0, 3, 3}, {0, 70, 80}}, 3);
  check_case({2, 2, 8, 0, {0, 70}, {0, 129}}, 4);
  check_case({10, 2, 33, 0, {0, 1, 4}, {0, 200, 331}}, 5);  // many heads on a key, odd D
  check_case({6, 1, 24, 100, {0, 1}, {0, 300}}, 6);         // a window over several pieces
  check_case({3, 1, 64, 0, {0, 1, 2}, {0, 64, 193}}, 7);    // whole pieces, one key beyond
}

TEST_CASE("no documents") {
  for (const Subject& s : subjects()) {
    Case c{2, 1, 8, 0, {0}, {0}};
    Result r = attend(s.backend, s.dtype, c, {}, {}, {}, {});
    CHECK(r.o.empty());
  }
}

TEST_CASE("attention does not depend on threads, nor documents on their neighbours") {
  const int threads = omp_get_max_threads();
  for (const auto& [dtype, window] : std::vector<std::pair<DType, int>>{
           {DType::F32, 0}, {DType::BF16, 0}, {DType::F32, 50}, {DType::BF16, 50}}) {
    Case c{6, 2, 64, window, {0, 150, 190}, {0, 150, 190}};
    auto q = random_values(190 * 6 * 64, 1), d = random_values(190 * 6 * 64, 2);
    auto k = random_values(190 * 2 * 64, 3), v = random_values(190 * 2 * 64, 4);
    Result want = attend(fast(), dtype, c, q, k, v, d);
    for (int n : {1, 3, 7}) {
      omp_set_num_threads(n);
      Result got = attend(fast(), dtype, c, q, k, v, d);
      CHECK((got.o == want.o && got.dq == want.dq && got.dk == want.dk && got.dv == want.dv));
    }
    omp_set_num_threads(threads);
    auto tail = [](const std::vector<double>& x, std::size_t row) {
      return std::vector<double>(x.begin() + static_cast<std::ptrdiff_t>(150 * row), x.end());
    };
    Case alone{6, 2, 64, window, {0, 40}, {0, 40}};
    Result second =
        attend(fast(), dtype, alone, tail(q, 384), tail(k, 128), tail(v, 128), tail(d, 384));
    CHECK(second.o == tail(want.o, 384));
    CHECK(second.dq == tail(want.dq, 384));
    CHECK(second.dk == tail(want.dk, 128));
    CHECK(second.dv == tail(want.dv, 128));
  }
}

TEST_CASE("a long row's attention does not depend on threads, of whatever way they share it") {
  const int threads = omp_get_max_threads();
  const auto compare = [&](DType dtype) {
    for (int window : {0, 50, 130}) {
      const Case c{4, 1, 40, window, {0, 533}, {0, 533}};
      const auto q = random_values(533 * 160, 1), d = random_values(533 * 160, 2),
                 k = random_values(533 * 40, 3), v = random_values(533 * 40, 4);
      Result want;
      for (int n :
           {1, 2, 5, 40}) {  // in turns, and from 3 threads on by blocks of queries and of keys
        omp_set_num_threads(n);
        Result got = attend(fast(), dtype, c, q, k, v, d);
        if (n == 1) want = got;
        CHECK((got.o == want.o && got.dq == want.dq && got.dk == want.dk && got.dv == want.dv));
      }
      omp_set_num_threads(threads);
    }
  };
  compare(DType::F32);
  compare(DType::BF16);
  const WithoutBf16Tile plain;
  compare(DType::BF16);
}

TEST_CASE("a query of a cache depends neither on threads nor on other sequences") {
  const int threads = omp_get_max_threads();
  Case c{6, 2, 40, 0, {0, 1, 3}, {0, 150, 390}}, alone{6, 2, 40, 0, {0, 2}, {0, 240}};
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto q = random_values(3 * 240, 1), k = random_values(390 * 80, 2),
         v = random_values(390 * 80, 3);
    const Result want = attend(fast(), dtype, c, q, k, v, q);
    for (int n : {1, 3, 7}) {
      omp_set_num_threads(n);
      CHECK(attend(fast(), dtype, c, q, k, v, q).o == want.o);
    }
    omp_set_num_threads(threads);
    auto tail = [](const std::vector<double>& x, std::int64_t from) {
      return std::vector<double>(x.begin() + from, x.end());
    };
    CHECK(attend(fast(), dtype, alone, tail(q, 240), tail(k, 150 * 80), tail(v, 150 * 80),
                 tail(q, 240))
              .o == tail(want.o, 240));
  }
}

TEST_CASE("large scores neither overflow nor lose the softmax") {
  Case c{1, 1, 16, 0, {0, 100}, {0, 100}};
  auto q = random_values(1600, 1, 30), k = random_values(1600, 2, 30), v = random_values(1600, 3),
       d = random_values(1600, 4);
  Result got = attend(fast(), DType::F32, c, q, k, v, d);
  for (const auto* x : {&got.o, &got.lse, &got.dq, &got.dk, &got.dv})
    for (double e : *x) CHECK(std::isfinite(e));
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

void attention_case(GradcheckCases& out, const std::string& what, AttentionShape shape,
                    std::vector<std::int32_t> offsets, unsigned seed) {
  Segments segments = make_segments(reference(), std::move(offsets));
  const std::int64_t T = segments.total(), D = shape.head_dim;
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(D)));
  out.push_back(
      {"attention, " + what,
       [=](Tape& t, const Vars& in) { return attention(t, in[0], in[1], in[2], shape, segments); },
       {rnd({T, shape.n_heads * D}, seed), rnd({T, shape.n_kv_heads * D}, seed + 1),
        rnd({T, shape.n_kv_heads * D}, seed + 2)}});
}

const GradcheckFamily gradients([](GradcheckCases& out) {
  attention_case(out, "one document", {2, 2, 5, 0, 0}, {0, 7}, 40);
  attention_case(out, "grouped heads, documents of 1, 0, 4, 0", {4, 2, 3, 0, 0}, {0, 1, 1, 5, 5},
                 43);
  attention_case(out, "one key head for all", {3, 1, 3, 0, 0}, {0, 2, 6}, 46);
  attention_case(out, "window 3, grouped", {4, 2, 2, 0, 3}, {0, 6, 6, 8}, 49);
  attention_case(out, "window 1 sees only itself", {1, 1, 2, 0, 1}, {0, 3}, 52);
  attention_case(out, "window longer than the document", {2, 1, 2, 0, 99}, {0, 4}, 55);
  attention_case(out, "one token, one number", {1, 1, 1, 0, 0}, {0, 1}, 58);
  AttentionShape shape{2, 2, 3, 0.6f, 0};
  Segments segments = make_segments(reference(), {0, 3, 5});
  out.push_back(
      {"attention, q = k = v",
       [=](Tape& t, const Vars& in) { return attention(t, in[0], in[0], in[0], shape, segments); },
       {rnd({5, 6}, 61)}});
});

}  // namespace
