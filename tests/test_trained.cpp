// Vectors and tables that train: scaling, sums over tokens, and the ops that use them.
#include <omp.h>

#include "gradcheck_cases.h"
#include "parity.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("scale_columns multiplies each column by its factor") {
  for (const Subject& s : subjects())
    for (auto [T, N] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 7}, {130, 257}, {2, 9001}})
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        Tensor x = padded(s.backend, s.dtype, T, N, 3, 1),
               y = padded(s.backend, s.dtype, T, N, 2, 2);
        Tensor l = random_tensor(s.backend, s.dtype, {N}, 3), y64 = as_f64(y);
        std::vector<double> before = values(y);
        s.backend.scale_columns(y, mode, x, l);
        reference().scale_columns(y64, mode, as_f64(x), as_f64(l));
        // A product and a sum: two roundings, of y and of what it was.
        const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        std::vector<double> slack = values(y64);
        for (std::size_t i = 0; i < slack.size(); ++i)
          slack[i] = 4 * u * (std::abs(slack[i]) + std::abs(before[i])) + 1e-300;
        check_close(values(y), values(y64), unit_roundoff(s.dtype), slack,
                    concat(s.name, " scale_columns ", T, "x", N));
        CHECK(padding_intact(y));
      }
}

TEST_CASE("a vector's gradient sums its tokens, with and without statistics") {
  for (const Subject& s : subjects())
    for (auto [T, N] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 7}, {130, 257}, {2000, 65}})
      for (GradMode mode : {GradMode::Write, GradMode::Add})
        for (int given : {0, 1, 2, 3}) {  // a; a b; a b rstd; a b mean rstd
          const DType st = stat_dtype(s.dtype);
          Tensor a = padded(s.backend, s.dtype, T, N, 3, 1),
                 b = padded(s.backend, s.dtype, T, N, 1, 2);
          Tensor mean = random_tensor(s.backend, st, {T}, 4),
                 rstd = random_tensor(s.backend, st, {T}, 5),
                 dl = random_tensor(s.backend, st, {N}, 6), dl64 = as_f64(dl);
          auto pick = [&](int from, const Tensor& x) { return given >= from ? x : Tensor(); };
          auto wide = [&](int from, const Tensor& x) {
            return given >= from ? as_f64(x) : Tensor();
          };
          std::vector<double> magnitude(static_cast<std::size_t>(N), 0);
          const std::vector<double> va = values(a), vb = values(b), vm = values(mean),
                                    vr = values(rstd);
          for (std::size_t t = 0; t < static_cast<std::size_t>(T); ++t)
            for (std::size_t j = 0; j < magnitude.size(); ++j)
              magnitude[j] += std::abs(va[t * magnitude.size() + j]) *
                              (given >= 1 ? std::abs(vb[t * magnitude.size() + j]) +
                                                (given >= 3 ? std::abs(vm[t]) : 0)
                                          : 1) *
                              (given >= 2 ? std::abs(vr[t]) : 1);
          for (std::size_t j = 0; j < magnitude.size(); ++j)
            magnitude[j] += std::abs(values(dl)[j]);
          const std::int64_t counted = s.backend.weight_gradient_matmuls();
          s.backend.vector_gradient(dl, mode, a, pick(1, b), pick(3, mean), pick(2, rstd));
          CHECK(s.backend.weight_gradient_matmuls() == counted + 1);
          reference().vector_gradient(dl64, mode, as_f64(a), wide(1, b), wide(3, mean),
                                      wide(2, rstd));
          // At most 64 + T / 64 additions in a row, and four roundings of each term.
          const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
          std::vector<double> slack(magnitude);
          for (double& m : slack) m *= u * (5 * std::sqrt(64.0 + static_cast<double>(T) / 64) + 8);
          check_close(values(dl), values(dl64), u, slack,
                      concat(s.name, " vector_gradient ", T, "x", N, " given ", given));
        }
}

TEST_CASE("a vector's gradient does not depend on the number of threads") {
  const int threads = omp_get_max_threads();
  for (DType t : {DType::F32, DType::BF16}) {
    Tensor a = random_tensor(fast(), t, {700, 200}, 1), b = random_tensor(fast(), t, {700, 200}, 2);
    std::vector<std::vector<double>> got;
    for (int n : {1, 3}) {
      omp_set_num_threads(n);
      Tensor dl = fast().empty(Tag::Workspace, DType::F32, {200});
      fast().vector_gradient(dl, GradMode::Write, a, b);
      got.push_back(values(dl));
    }
    omp_set_num_threads(threads);
    CHECK(got[0] == got[1]);
  }
}

TEST_CASE("a table's gradient adds the rows of equal ids, in order") {
  for (const Subject& s : subjects())
    for (std::int64_t C : {1, 7, 130})
      for (GradMode mode : {GradMode::Write, GradMode::Add}) {
        const std::vector<std::int32_t> ids{3, 0, 3, 6, 3, 0};
        const DType st = stat_dtype(s.dtype);
        Tensor dy = padded(s.backend, s.dtype, std::ssize(ids), C, 3, 1),
               dtable = random_tensor(s.backend, st, {7, C}, 2);
        std::vector<double> want = mode == GradMode::Add
                                       ? values(dtable)
                                       : std::vector<double>(static_cast<std::size_t>(7 * C), 0.0);
        const std::vector<double> up = values(dy);
        for (std::size_t i = 0; i < ids.size(); ++i)
          for (std::size_t j = 0; j < static_cast<std::size_t>(C); ++j)
            want[static_cast<std::size_t>(ids[i] * C) + j] +=
                up[i * static_cast<std::size_t>(C) + j];
        Tensor index = to_device(s.backend, Tag::Workspace, ids);
        s.backend.table_gradient(dtable, mode, dy, index);
        const double u = s.dtype == DType::F64 ? 0x1p-53 : 0x1p-24;
        check_close(values(dtable), want, u, {16 * u}, concat(s.name, " table_gradient C ", C));
      }
  Tensor dy = random_tensor(fast(), DType::F32, {1, 4}, 1),
         dtable = random_tensor(fast(), DType::F32, {7, 4}, 2);
  for (std::int32_t id : {-1, 7})
    CHECK_THROWS_AS(
        fast().table_gradient(dtable, GradMode::Add, dy,
                              to_device(fast(), Tag::Workspace, std::vector<std::int32_t>{id})),
        Error);
}

TEST_CASE("trained norms compute the values of the frozen ones, in any dtype") {
  for (DType t : {DType::F32, DType::BF16}) {
    Backend& be = fast();
    Tape tape(be, Tape::Mode::NoGrad);
    Parameter gain("gain", random_tensor(be, DType::F32, {24}, 1), t),
        bias("bias", random_tensor(be, DType::F32, {24}, 2), t);
    const Weight gain0("gain", gain.compute()), bias0("bias", bias.compute());
    const Var x(random_tensor(be, t, {5, 24}, 3));
    CHECK(values(rmsnorm(tape, x, gain, 1e-5).value()) ==
          values(rmsnorm(tape, x, gain0, 1e-5).value()));
    const std::vector<double> want = values(layernorm(tape, x, gain0, bias0, 1e-5).value());
    CHECK(values(layernorm(tape, x, gain, bias, 1e-5).value()) == want);
    CHECK(values(layernorm(tape, x, gain0, bias, 1e-5).value()) == want);
    CHECK(tape.n_nodes() == 0);
  }
}

TEST_CASE("a table that is embedding and head gets both gradients, in one buffer") {
  Backend& be = reference();
  Parameter &tied = trainable({6, 4}, 300), &table = trainable({6, 4}, 300),
            &head = trainable({6, 4}, 300);
  const Tensor ids = ints({5, 2, 5}), targets = ints({2, 5, 0});
  auto run = [&](Parameter& e, Parameter& h) {
    Tape tape(be);
    Var loss = head_loss(tape, embedding(tape, e, ids), h, targets, 0.5, 2);
    tape.backward(loss);
  };
  run(tied, tied);
  run(table, head);
  std::vector<double> sum = values(table.grad()), two = values(head.grad());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += two[i];
  check_close(values(tied.grad()), sum, 4 * 0x1p-53, {1e-300}, "tied");
}

TEST_CASE("a trained head's loss is the frozen head's, whatever the chunk") {
  Backend& be = fast();
  Parameter head("head", random_tensor(be, DType::F32, {50, 12}, 1), DType::F32);
  const Weight frozen_head("head", head.value());
  const Tensor x = random_tensor(be, DType::F32, {7, 12}, 2);
  const Tensor targets =
      to_device(be, Tag::Workspace, std::vector<std::int32_t>{3, 49, kNoTarget, 0, 1, 7, 7});
  std::vector<double> gradient;
  const LossScale scale(0.25, {}, 0.1);  // with smoothing
  for (std::int64_t chunk : {1, 3, 7, 100}) {
    Tape tape(be);
    head.zero_grad();
    Var in = tape.leaf(x);
    Var loss = head_loss(tape, in, head, targets, scale, chunk);
    Tape other(be);
    Var in2 = other.leaf(x);
    Var want = head_loss(other, in2, frozen_head, targets, scale, chunk);
    CHECK(values(loss.value()) == values(want.value()));
    tape.backward(loss), other.backward(want);
    CHECK(values(tape.gradient(in)) == values(other.gradient(in2)));
    if (gradient.empty()) gradient = values(head.grad());
    check_close(values(head.grad()), gradient, 0, {7 * 0x1p-24}, "dhead");
  }
}

// ---- gradients ----------------------------------------------------------------------------------

namespace {

const GradcheckFamily gradients([](GradcheckCases& out) {
  auto one_vector = [&](const std::string& what, auto f, Shape vector, Tensor x, unsigned seed) {
    Parameter& p = trainable(vector, seed);
    out.push_back({what, [=, &p](Tape& t, const Vars& in) { return f(t, in[0], p); }, {x}, {&p}});
  };
  auto scaled = [](Tape& t, const Var& x, Parameter& l) { return scale_columns(t, x, l); };
  one_vector("scale_columns", scaled, {5}, rnd({4, 5}, 301), 302);
  one_vector("scale_columns of one number", scaled, {1}, rnd({1, 1}, 303), 304);
  auto twice = [](Tape& t, const Var& x, Parameter& l) {
    return scale_columns(t, scale_columns(t, x, l), l);
  };
  one_vector("scale_columns twice by one vector", twice, {3}, rnd({2, 3}, 305), 306);
  auto shifted = [](Tape& t, const Var& x, Parameter& b) { return add_bias(t, x, b); };
  one_vector("trained bias", shifted, {5}, rnd({4, 5}, 307), 308);
  auto normed = [](Tape& t, const Var& x, Parameter& g) { return rmsnorm(t, x, g, 1e-5); };
  one_vector("trained rmsnorm", normed, {9}, rnd({4, 9}, 309), 310);
  one_vector("trained rmsnorm of each head", normed, {3}, rnd({4, 9}, 311), 312);
  one_vector("trained rmsnorm of one number", normed, {1}, rnd({2, 1}, 313), 314);
  const Weight gain = frozen({9}, 315);
  one_vector(
      "layernorm with a trained bias",
      [=](Tape& t, const Var& x, Parameter& b) { return layernorm(t, x, gain, b, 1e-5); }, {9},
      rnd({4, 9}, 316), 317);
  Parameter &g = trainable({9}, 318), &b = trainable({9}, 319);
  out.push_back({"trained layernorm",
                 [&](Tape& t, const Vars& in) { return layernorm(t, in[0], g, b, 1e-5); },
                 {rnd({4, 9}, 320)},
                 {&g, &b}});
  Parameter &w = trainable({3, 5}, 321), &wb = trainable({3}, 322);
  out.push_back({"trained linear with a bias",
                 [&](Tape& t, const Vars& in) { return linear(t, in[0], w, &wb); },
                 {rnd({4, 5}, 323)},
                 {&w, &wb}});
  Parameter& table = trainable({7, 3}, 324);
  const Tensor ids = ints({6, 1, 6, 0, 6});
  out.push_back(
      {"trained embedding, repeated ids",
       [=, &table](Tape& t, const Vars& in) { return add(t, embedding(t, table, ids), in[0]); },
       {rnd({5, 3}, 325)},
       {&table}});
  Parameter& head = trainable({7, 4}, 326);
  const Tensor targets = ints({6, kNoTarget, 0, 3, 3});
  const Tensor factor = tensor_from(reference(), DType::F64, {1}, {1.5});
  for (std::int64_t chunk : {2, 5})
    out.push_back({concat("trained head_loss, chunks of ", chunk),
                   [=, &head](Tape& t, const Vars& in) {
                     return head_loss(t, in[0], head, targets, {0.3, factor}, chunk);
                   },
                   {rnd({5, 4}, 327)},
                   {&head}});
  Parameter& tied = trainable({7, 4}, 328);
  out.push_back({"a tied table",
                 [=, &tied](Tape& t, const Vars& in) {
                   Var x = add(t, embedding(t, tied, ids), in[0]);
                   return head_loss(t, x, tied, targets, 0.3, 3);
                 },
                 {rnd({5, 4}, 329)},
                 {&tied}});
  out.push_back({"scaled",
                 [](Tape& t, const Vars& in) { return lk::scaled(t, in[0], -1.5); },
                 {rnd({3, 5}, 331)}});
  for (Activation act : {Activation::Silu, Activation::Relu})
    out.push_back({act == Activation::Silu ? "silu" : "relu",
                   [=](Tape& t, const Vars& in) { return activation(t, act, in[0]); },
                   {rnd({3, 5}, 330, 2.0)}});
});

}  // namespace

// ---- on a GPU ------------------------------------------------------------------------------------

TEST_CASE("cuda: scale_columns") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("scale_columns", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2);
        Guarded factor(s.backend, s.dtype, 1, cols, kContiguous,
                       rounded(random_values(cols, 3), s.rounded));
        s.backend.scale_columns(y, mode, x, factor.vector());
        return std::vector<Guarded>{y};
      });
      std::vector<double> size =
          sum_of(magnitudes(t, rows * cols, 1), r.want[0], 1);  // what was added to, and the sum
      check_close(r.got[0], r.want[0], unit_roundoff(t), f32_slack(4, size),
                  label("scale_columns", t, rows, cols, l));
    }
  });
}

TEST_CASE("cuda: the gradient of a vector, with and without statistics") {
  LK_NEEDS_GPU();
  auto check = [](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes)
      for (int given : {0, 1, 2, 3}) {  // a; a b; a b rstd; a b mean rstd
        auto run = [&](const Side& s, bool size) {
          auto input = [&](unsigned seed) {
            return size ? Guarded(s.backend, s.dtype, rows, cols, kContiguous,
                                  magnitudes(s.rounded, rows * cols, seed))
                        : numbers(s, rows, cols, seed);
          };
          auto statistic = [&](std::int64_t n, unsigned seed, double sign) {
            std::vector<double> v = rounded(random_values(n, seed), DType::F32);
            if (size)
              for (double& x : v) x = sign * std::abs(x);
            return Guarded(s.backend, s.stat(), 1, n, kContiguous, v);
          };
          Guarded a = input(1), b = input(2), dl = statistic(cols, 3, 1),
                  mean = statistic(rows, 4, -1), rstd = statistic(rows, 5, 1);
          s.backend.vector_gradient(dl.vector(), mode, a, given >= 1 ? b.matrix() : Tensor(),
                                    given >= 3 ? mean.vector() : Tensor(),
                                    given >= 2 ? rstd.vector() : Tensor());
          return std::vector<Guarded>{dl};
        };
        const std::string what = label("vector_gradient", t, rows, cols, l);
        Results r = compare(what, t, l, [&](const Side& s) { return run(s, false); });
        const std::vector<double> size =
            run({oracle(), DType::F64, t, kContiguous}, true)[0].values(what);
        // At most rows / 8 of a block's 256 rows, 8 warps and rows / 256 blocks are added in a row.
        const double length = 32 + 8 + static_cast<double>(rows) / 256;
        check_close(r.got[0], r.want[0], unit_roundoff(DType::F32),
                    f32_slack(4 + 5 * std::sqrt(length), size), concat(what, " given ", given));
      }
  };
  everywhere(check);
  for (DType t : kDTypes) check(t, kContiguous, 3001, 64), check(t, kOdd, 777, 577);
}

TEST_CASE("cuda: the gradient of a table, with repeated ids") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (auto [T, V, C] : {std::array<std::int64_t, 3>{0, 3, 8},
                             {1, 1, 1},
                             {5, 3, 7},
                             {300, 11, 257},
                             {1000, 4, 64},
                             {2100, 5000, 40}})
        for (GradMode mode : kModes) {
          const std::string what =
              concat("table_gradient ", dtype_name(t), " T ", T, " V ", V, " C ", C);
          std::vector<std::int32_t> ids;
          for (std::int64_t i = 0; i < T; ++i)
            ids.push_back(static_cast<std::int32_t>(i * i * 7919 % V));
          auto run = [&, T = T, V = V, C = C](const Side& s, bool size) {
            Guarded dy = size ? Guarded(s.backend, s.dtype, T, C, kContiguous,
                                        magnitudes(s.rounded, T * C, 1))
                              : numbers(s, T, C, 1);
            Guarded dtable = size ? Guarded(s.backend, s.stat(), V, C, kContiguous,
                                            magnitudes(DType::F32, V * C, 2))
                                  : statistics(s, V, C, 2);
            s.backend.table_gradient(dtable, mode, dy, indices(s, ids));
            return std::vector<Guarded>{dtable};
          };
          Results r = compare(what, t, l, [&](const Side& s) { return run(s, false); });
          const std::vector<double> size =
              run({oracle(), DType::F64, t, kContiguous}, true)[0].values(what);
          // An id's rows are added one after the other.
          check_close(r.got[0], r.want[0], unit_roundoff(DType::F32),
                      f32_slack(4 + 5 * std::sqrt(static_cast<double>(T)), size), what);
        }
}

TEST_CASE("cuda: silu and relu alone") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (Activation act : {Activation::Silu, Activation::Relu})
      for (GradMode mode : kModes) {
        Results r = compare("activation", t, l, [&](const Side& s) {
          Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2, 3.0),
                  dx = numbers(s, rows, cols, 3), dy = numbers(s, rows, cols, 4);
          s.backend.gated_forward(act, y, x, {});
          s.backend.gated_backward(act, {}, dx, mode, {}, dy, x, {});
          return std::vector<Guarded>{y, dx};
        });
        std::vector<double> x = magnitudes(t, rows * cols, 2, 3.0),
                            dy = magnitudes(t, rows * cols, 4), dx = magnitudes(t, rows * cols, 3);
        for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += dy[i] * (1 + x[i]);
        const std::string what = label("activation", t, rows, cols, l);
        check_close(r.got[0], r.want[0], unit_roundoff(t), f32_slack(8, r.want[0]), what + " y");
        check_close(r.got[1], r.want[1], unit_roundoff(t), f32_slack(16, dx), what + " dx");
      }
  });
}
