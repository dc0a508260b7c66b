// Ops of methods that train tokens: keys shared by all tokens against the plain F64 twin and against
// attention over sequences that hold them, and rows of parameters in a batch.
#include <omp.h>

#include "autograd/virtual_tokens.h"
#include "gradcheck_cases.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Case {
  int H, G, D, window;
  std::int64_t n;                     // keys
  std::vector<std::int32_t> offsets;  // of the documents
  AttentionShape shape() const {
    return {H, G, D, static_cast<float>(1 / std::sqrt(static_cast<double>(D))), window};
  }
  std::int64_t T() const { return offsets.back(); }
  std::vector<std::int32_t> positions() const {
    std::vector<std::int32_t> p;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i)
      for (std::int32_t t = 0; t < offsets[i + 1] - offsets[i]; ++t) p.push_back(t);
    return p;
  }
  std::string str() const {
    return concat("H ", H, " G ", G, " D ", D, " window ", window, " n ", n, " T ", T());
  }
};

const std::vector<Case> kCases = {
    {1, 1, 1, 0, 1, {0, 1}},         {4, 2, 8, 0, 3, {0, 5, 12}},
    {3, 3, 5, 0, 33, {0, 7, 7, 20}},  // an empty document, odd sizes
    {6, 2, 16, 0, 64, {0, 40}},      {2, 1, 80, 0, 20, {0, 3, 9}},
    {4, 2, 8, 4, 6, {0, 9, 12}},    // late tokens see no key
    {2, 2, 7, 10, 5, {0, 3, 20}},   // a window that ends among the keys
    {2, 1, 6, 100, 40, {0, 8, 9}},  // all of them in the window
};

struct Result {
  std::vector<double> o, lse, dq, dk, dv, delta;
};

// Every matrix has padded rows. With Add, o, lse and dq hold numbers already.
Result attend(Backend& b, DType dtype, const Case& c, GradMode mode) {
  const std::int64_t T = c.T(), QD = c.H * c.D, KD = c.G * c.D;
  SharedKeyKernels& kernels = *b.shared_key_kernels();
  auto matrix = [&](std::int64_t rows, std::int64_t cols, std::int64_t pad, unsigned seed) {
    const Tensor rounded = random_tensor(b, DType::BF16, {rows, cols}, seed);  // alike everywhere
    return padded(b, dtype, rows, cols, pad, values(rounded));
  };
  const Tensor q = matrix(T, QD, 3, 1), dout = matrix(T, QD, 5, 2);
  const SharedKeys keys{matrix(c.n, KD, 1, 3), matrix(c.n, KD, 2, 4),
                        to_device(b, Tag::Workspace, c.positions()), c.n};
  const Tensor o = matrix(T, QD, 4, 5), dq = matrix(T, QD, 7, 6);
  const Tensor dk = matrix(c.n, KD, 6, 7), dv = matrix(c.n, KD, 8, 8);
  const Tensor lse = tensor_from(b, stat_dtype(dtype), {c.H, T}, random_values(c.H * T, 9));
  const Tensor delta = b.empty(Tag::Workspace, stat_dtype(dtype), {c.H, T});
  kernels.shared_keys_forward(o, lse, mode, q, keys, c.shape());
  kernels.shared_keys_backward(dq, mode, dk, dv, delta, dout, q, keys, o, lse, c.shape());
  for (const Tensor& x : {o, dq, dk, dv}) CHECK(padding_intact(x));
  return {values(o), values(lse), values(dq), values(dk), values(dv), values(delta)};
}

bool equal(const Result& a, const Result& b) {
  return a.o == b.o && a.lse == b.lse && a.dq == b.dq && a.dk == b.dk && a.dv == b.dv &&
         a.delta == b.delta;
}

// -inf, the lse of a token that sees nothing, as a number that can be compared.
std::vector<double> finite(std::vector<double> x) {
  for (double& e : x) e = std::isinf(e) ? -1e6 : e;
  return x;
}

}  // namespace

// Numbers are about 1, so that with p's relative error e = 16 u D, a sum of p v is off by at most
// 6 e, and that of ds (bounded by p times 2 * 6 sqrt(D) sums) by as much for each of its terms. The
// stored o, rounded by u_out, enters delta.
TEST_CASE("shared keys agree with the F64 twin") {
  for (const Case& c : kCases)
    for (GradMode mode : {GradMode::Write, GradMode::Add}) {
      const Result want = attend(reference(), DType::F64, c, mode);
      for (const Subject& s : subjects()) {
        const Result got = attend(s.backend, s.dtype, c, mode);
        const std::string what = concat(s.name, " ", c.str());
        const double out = unit_roundoff(s.dtype), u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        const double e = 16 * u * c.D, of_sum = 6 * e;
        const double of_ds = 6 * std::sqrt(c.D) * (e + out) * 6;
        check_close(finite(got.lse), finite(want.lse), 4 * u, {e}, what + " lse");
        check_close(got.o, want.o, 2 * out, {of_sum}, what + " o");
        check_close(got.delta, want.delta, 0, {6 * c.D * (out + e)}, what + " delta");
        check_close(got.dq, want.dq, 2 * out, {of_ds}, what + " dq");
        const double rows = static_cast<double>(c.T()) * c.H / c.G;
        check_close(got.dk, want.dk, out, {rows * of_ds}, what + " dk");
        check_close(got.dv, want.dv, out, {rows * of_sum}, what + " dv");
      }
    }
}

TEST_CASE("shared keys give the same bits with any number of threads") {
  const int threads = omp_get_max_threads();
  for (DType dtype : {DType::F32, DType::BF16}) {
    const Case c{6, 2, 40, 12, 9, {0, 50, 61}};
    const Result want = attend(fast(), dtype, c, GradMode::Add);
    for (int n : {1, 3, 7}) {
      omp_set_num_threads(n);
      CHECK(equal(attend(fast(), dtype, c, GradMode::Add), want));
    }
    omp_set_num_threads(threads);
  }
}

// Sequences that begin with the keys, whose own queries get no gradient.
TEST_CASE("attention with a prefix is attention over the sequences with the prefix in front") {
  for (const Case& c : kCases) {
    const std::int64_t T = c.T(), QD = c.H * c.D, KD = c.G * c.D, n = c.n;
    Backend& b = reference();
    const Tensor q = rnd({T, QD}, 1), k = rnd({T, KD}, 2), v = rnd({T, KD}, 3),
                 dy = rnd({T, QD}, 4);
    const Tensor pk = rnd({n, KD}, 5), pv = rnd({n, KD}, 6);
    Tape tape(b);
    const Vars in{tape.leaf(q), tape.leaf(k), tape.leaf(v), tape.leaf(pk), tape.leaf(pv)};
    const Var y = prefix_attention(tape, in[0], in[1], in[2], in[3], in[4], c.shape(),
                                   make_segments(b, c.offsets), ints(c.positions()), n);
    tape.backward(y, dy);

    std::vector<std::int32_t> longer{0};
    for (std::size_t i = 0; i + 1 < c.offsets.size(); ++i)
      longer.push_back(longer.back() + c.offsets[i + 1] - c.offsets[i] +
                       static_cast<std::int32_t>(n));
    // Lays `front` and the documents' rows of x behind each other; without a front, zeros.
    auto joined = [&](const Tensor& front, const Tensor& x) {
      Tensor all = b.empty(Tag::Workspace, DType::F64, {longer.back(), x.cols()});
      b.fill(all, 0);
      for (std::size_t i = 0; i + 1 < longer.size(); ++i) {
        if (front) b.copy(all.slice_rows(longer[i], longer[i] + n), front);
        b.copy(all.slice_rows(longer[i] + n, longer[i + 1]),
               x.slice_rows(c.offsets[i], c.offsets[i + 1]));
      }
      return all;
    };
    Tape long_tape(b);
    const Vars all{long_tape.leaf(joined({}, q)), long_tape.leaf(joined(pk, k)),
                   long_tape.leaf(joined(pv, v))};
    const Var long_y =
        attention(long_tape, all[0], all[1], all[2], c.shape(), make_segments(b, longer));
    long_tape.backward(long_y, joined({}, dy));

    // The rows of the text, and the sums over documents of the rows in front.
    auto text = [&](const Tensor& x) {
      std::vector<double> out;
      for (std::size_t i = 0; i + 1 < longer.size(); ++i)
        for (double e : values(x.slice_rows(longer[i] + n, longer[i + 1]))) out.push_back(e);
      return out;
    };
    auto front = [&](const Tensor& x) {
      std::vector<double> sum(static_cast<std::size_t>(n * x.cols()));
      for (std::size_t i = 0; i + 1 < longer.size(); ++i) {
        const std::vector<double> part = values(x.slice_rows(longer[i], longer[i] + n));
        for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += part[j];
      }
      return sum;
    };
    const std::vector<double> slack{1e-12};
    check_close(values(y.value()), text(long_y.value()), 0, slack, c.str() + " y");
    const Tensor dk = long_tape.gradient(all[1]), dv = long_tape.gradient(all[2]);
    check_close(values(tape.gradient(in[0])), text(long_tape.gradient(all[0])), 0, slack, "dq");
    check_close(values(tape.gradient(in[1])), text(dk), 0, slack, c.str() + " dk");
    check_close(values(tape.gradient(in[2])), text(dv), 0, slack, c.str() + " dv");
    check_close(values(tape.gradient(in[3])), front(dk), 0, slack, c.str() + " dpk");
    check_close(values(tape.gradient(in[4])), front(dv), 0, slack, c.str() + " dpv");
  }
}

TEST_CASE("tanh of large and small numbers") {
  const std::vector<double> x{0, 1e-3, -1e-3, 0.5, -2, 9, -40, 200};
  for (const Subject& s : subjects()) {
    Tape tape(s.backend);
    const Tensor in = tensor_from(s.backend, s.dtype, {2, 4}, x);
    const std::vector<double> got = values(tanh(tape, tape.constant(in)).value()), at = values(in);
    std::vector<double> want;
    for (double e : at) want.push_back(std::tanh(e));
    check_close(got, want, unit_roundoff(s.dtype), {s.dtype == DType::F64 ? 4e-16 : 0x1p-22},
                s.name);
  }
}

TEST_CASE("a parameter's rows replace those of each document, in every dtype") {
  for (const Subject& s : subjects()) {
    Parameter p("p", random_tensor(s.backend, stat_dtype(s.dtype), {2, 5}, 1), s.dtype);
    const Tensor x = random_tensor(s.backend, s.dtype, {7, 5}, 2);
    const std::vector<double> before = values(x);
    const Tensor rows = to_device(s.backend, Tag::Workspace, std::vector<std::int32_t>{0, 1, 4, 5});
    Tape tape(s.backend);
    const Var in = tape.leaf(x);
    const Var y = virtual_tokens(tape, in, rows, p);
    CHECK(values(x) == before);
    const Tensor dy = random_tensor(s.backend, s.dtype, {7, 5}, 3);
    tape.backward(y, dy);
    auto row = [](const Tensor& t, std::int64_t i) { return values(t.slice_rows(i, i + 1)); };
    for (std::int64_t i = 0; i < 7; ++i) {
      const bool replaced = i == 0 || i == 1 || i == 4 || i == 5;
      CHECK(row(y.value(), i) == row(replaced ? p.compute() : x, replaced ? i % 4 : i));
      CHECK(row(tape.gradient(in), i) == (replaced ? std::vector<double>(5, 0.0) : row(dy, i)));
    }
    for (std::int64_t i = 0; i < 2; ++i) {
      std::vector<double> sum = row(dy, i);
      for (std::size_t j = 0; j < 5; ++j) sum[j] += row(dy, i + 4)[j];
      check_close(row(p.grad(), i), sum, 0, {s.dtype == DType::F64 ? 1e-15 : 0x1p-22}, s.name);
    }
  }
}

TEST_CASE("a batch without documents leaves a parameter the gradient zero") {
  Parameter p("p", rnd({2, 3}, 1), DType::F64);
  Tape tape(reference());
  const Var y = virtual_tokens(tape, tape.constant(rnd({4, 3}, 2)), ints({}), p);
  tape.backward(y, rnd({4, 3}, 3));
  CHECK(values(p.grad()) == std::vector<double>(6, 0.0));
}

TEST_CASE("what does not fit is refused") {
  Parameter& p = trainable({2, 3}, 1);
  Tape tape(reference());
  const Var x = tape.leaf(rnd({4, 3}, 2)), pk = tape.leaf(rnd({2, 3}, 3));
  CHECK_THROWS_AS(virtual_tokens(tape, x, ints({0, 1, 2}), p), Error);
  CHECK_THROWS_AS(virtual_tokens(tape, x, ints({0, 1, 2, 3, 4, 5}), p), Error);
  CHECK_THROWS_AS(slice_cols(tape, x, 2, 4), Error);
  CHECK_THROWS_AS(adapter_attention(tape, x, pk, pk, p, {1, 1, 3, 1, 0}), Error);
  CHECK_THROWS_AS(adapter_attention(tape, x, pk, pk, trainable({1}, 1), {1, 1, 3, 1, 5}), Error);
  CHECK_THROWS_AS(adapter_attention(tape, x, pk, x, trainable({1}, 1), {1, 1, 3, 1, 0}), Error);
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

void prefix_case(GradcheckCases& out, const Case& c, unsigned seed) {
  const Segments segments = make_segments(reference(), c.offsets);
  const Tensor positions = ints(c.positions());
  const std::int64_t T = c.T(), QD = c.H * c.D, KD = c.G * c.D;
  out.push_back({"prefix_attention, " + c.str(),
                 [=](Tape& t, const Vars& in) {
                   return prefix_attention(t, in[0], in[1], in[2], in[3], in[4], c.shape(),
                                           segments, positions, c.n);
                 },
                 {rnd({T, QD}, seed), rnd({T, KD}, seed + 1), rnd({T, KD}, seed + 2),
                  rnd({c.n, KD}, seed + 3), rnd({c.n, KD}, seed + 4)}});
}

void adapter_case(GradcheckCases& out, const Case& c, unsigned seed) {
  Parameter& gate = trainable({1}, seed);
  const std::int64_t QD = c.H * c.D, KD = c.G * c.D;
  out.push_back({"adapter_attention, " + c.str(),
                 [=, &gate](Tape& t, const Vars& in) {
                   return adapter_attention(t, in[0], in[1], in[2], gate, c.shape());
                 },
                 {rnd({c.T(), QD}, seed + 1), rnd({c.n, KD}, seed + 2), rnd({c.n, KD}, seed + 3)},
                 {&gate}});
}

const GradcheckFamily gradients([](GradcheckCases& out) {
  prefix_case(out, {1, 1, 1, 0, 1, {0, 1}}, 300);
  prefix_case(out, {4, 2, 3, 0, 3, {0, 1, 1, 5}}, 310);
  prefix_case(out, {2, 1, 2, 3, 4, {0, 5, 7}}, 320);
  prefix_case(out, {2, 2, 2, 9, 2, {0, 3}}, 330);
  adapter_case(out, {1, 1, 1, 0, 1, {0, 1}}, 340);
  adapter_case(out, {4, 2, 3, 0, 5, {0, 4}}, 350);
  Parameter &p = trainable({2, 3}, 360), &w = trainable({2, 3}, 361);
  const Tensor rows = ints({0, 1, 3, 4});
  out.push_back({"virtual_tokens",
                 [=, &p](Tape& t, const Vars& in) { return virtual_tokens(t, in[0], rows, p); },
                 {rnd({6, 3}, 362)},
                 {&p}});
  out.push_back({"as_var, beside another use of the parameter",
                 [&w](Tape& t, const Vars& in) {
                   return add(t, linear(t, as_var(t, w), w), linear(t, in[0], w));
                 },
                 {rnd({2, 3}, 363)},
                 {&w}});
  out.push_back({"slice_cols, overlapping",
                 [](Tape& t, const Vars& in) {
                   return add(t, slice_cols(t, in[0], 0, 3), slice_cols(t, in[0], 2, 5));
                 },
                 {rnd({2, 5}, 364)}});
  out.push_back(
      {"tanh", [](Tape& t, const Vars& in) { return tanh(t, in[0]); }, {rnd({3, 5}, 365)}});
});

}  // namespace
