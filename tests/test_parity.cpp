// Every entry point of the CUDA backend against the F64 twin on the CPU, within derived bounds:
// |got - want| <= u_out |want| + c 2^-24 (sum of the magnitudes of what was added), c = 8 for sums.
// Also: no write outside of the output, equal bits in two runs. Attention has its own file.
#include "autograd/thin.h"
#include "nn/cached_ops.h"
#include "parity.h"
#include "tensor/adapter_kernels.h"
#include "tensor/dora_kernels.h"
#include "tensor/slice_kernels.h"

using namespace lk;
using namespace lk::test;

TEST_CASE("cuda: fill, copy and add") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (double value : {0.0, -0.0, 1.375}) {
      Results r = compare("fill", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1);
        s.backend.fill(y, value);
        return std::vector<Guarded>{y};
      });
      CHECK(r.got == r.want);
    }
    for (DType from : kDTypes) {
      Results r = compare("copy", t, l, [&](const Side& s) {
        DType stored = s.dtype == DType::F64 ? DType::F64 : from;
        Guarded y = numbers(s, rows, cols, 1);
        Guarded x(s.backend, stored, rows, cols, s.layout,
                  rounded(random_values(rows * cols, 2), from));
        s.backend.copy(y, x);
        return std::vector<Guarded>{y};
      });
      CHECK(r.got[0] == rounded(r.want[0], t));
    }
    Results r = compare("add", t, l, [&](const Side& s) {
      Guarded y = numbers(s, rows, cols, 1), a = numbers(s, rows, cols, 2),
              b = numbers(s, rows, cols, 3);
      s.backend.add(y, a, b);
      Guarded in_place = numbers(s, rows, cols, 4);
      s.backend.add(in_place, in_place, b);
      return std::vector<Guarded>{y, in_place};
    });
    for (int i : {0, 1})
      check_close(r.got[i], r.want[i], unit_roundoff(t), f32_slack(1, r.want[i]),
                  label("add", t, rows, cols, l));
  });
}

TEST_CASE("cuda: scale") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes)
      for (bool with_scalar : {false, true}) {
        Results r = compare("scale", t, l, [&](const Side& s) {
          Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2);
          Tensor scalar;
          if (with_scalar) scalar = tensor_from(s.backend, s.stat(), {1}, {1.5});
          s.backend.scale(y, mode, -0.25, scalar, x);
          return std::vector<Guarded>{y};
        });
        std::vector<double> size =
            sum_of(magnitudes(t, rows * cols, 1), magnitudes(t, rows * cols, 2), 0.375);
        check_close(r.got[0], r.want[0], unit_roundoff(t), f32_slack(2, size),
                    label("scale", t, rows, cols, l));
      }
  });
}

TEST_CASE("cuda: add_bias") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    Results r = compare("add_bias", t, l, [&](const Side& s) {
      Guarded y = numbers(s, rows, cols, 1);
      s.backend.add_bias(y, frozen(s, {cols}, 2));
      return std::vector<Guarded>{y};
    });
    check_close(r.got[0], r.want[0], unit_roundoff(t), f32_slack(1, r.want[0]),
                label("add_bias", t, rows, cols, l));
  });
}

TEST_CASE("cuda: uniform draws the CPU's numbers") {
  LK_NEEDS_GPU();
  const RandomKey key{77, 3, 5};
  everywhere([&](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    Results r = compare("uniform", t, l, [&](const Side& s) {
      Guarded x = numbers(s, rows, cols, 1);
      s.backend.uniform(x, 0.0346410162f, key);
      return std::vector<Guarded>{x};
    });
    for (double& x : r.want[0]) x = round_to(t, x);
    CHECK_MESSAGE(r.got == r.want, label("uniform", t, rows, cols, l));
  });
}

TEST_CASE("cuda: dropout draws the CPU's mask") {
  LK_NEEDS_GPU();
  RandomKey key{.seed = 0x123456789abcdefull, .step = 77, .site = 5};
  everywhere([&](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("dropout", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2);
        s.backend.dropout(y, mode, x, 0.3f, key);
        return std::vector<Guarded>{y};
      });
      std::vector<double> size =
          sum_of(magnitudes(t, rows * cols, 1), magnitudes(t, rows * cols, 2), 1 / 0.7);
      check_close(r.got[0], r.want[0], unit_roundoff(t), f32_slack(4, size),
                  label("dropout", t, rows, cols, l));
      if (mode == GradMode::Write)
        for (std::size_t i = 0; i < r.got[0].size(); ++i)
          REQUIRE((r.got[0][i] == 0) == (r.want[0][i] == 0));
    }
  });
}

// ---- linear -----------------------------------------------------------------------------------
namespace {

enum class Product { NT, NN, TN };

// FP32 FMAs: c = 8 for the worst of 80,000 sums (4 holds for nearly all). Tensor cores truncate
// when they add to the running sum, which is about sqrt(K) for K normal products, once for every 16
// products: errors of one sign, so c grows like sqrt(K); 7 was measured at K = 1500. And a product
// of more than LoRA's rank is rounded to BF16 before it is added to a BF16 c.
std::vector<double> product_slack(DType in, DType out, GradMode mode, std::int64_t K,
                                  const std::vector<double>& size, const std::vector<double>& want,
                                  const std::vector<double>& before) {
  double c = in == DType::F32 ? 8 : 4 + std::sqrt(static_cast<double>(K)) / 4;
  std::vector<double> slack = f32_slack(c, size);
  if (mode == GradMode::Add && out == DType::BF16 && K > 128)
    for (std::size_t i = 0; i < slack.size(); ++i)
      slack[i] += unit_roundoff(out) * std::abs(want[i] - before[i]);
  return slack;
}

// Checks c (M,N) (+)= alpha op(a, b) over K. `out` is c's dtype on the GPU.
void check_product(Product op, std::int64_t M, std::int64_t N, std::int64_t K, DType t, DType out,
                   Layout layout, GradMode mode, double alpha) {
  bool tn = op == Product::TN;
  std::int64_t a_rows = tn ? K : M, a_cols = tn ? M : K;
  std::int64_t b_rows = op == Product::NT ? N : K, b_cols = op == Product::NT ? K : N;
  auto run_on = [&](Backend& b, const Tensor& c, GradMode how, double factor, const Tensor& x,
                    const Tensor& y) {
    if (op == Product::NT) b.matmul_nt(c, how, factor, x, y);
    if (op == Product::NN) b.matmul_nn(c, how, factor, x, y);
    if (tn) b.weight_gradient(c, how, factor, x, y);
  };
  std::string what =
      concat("product ", static_cast<int>(op), " ", dtype_name(t), "->", dtype_name(out), " M ", M,
             " N ", N, " K ", K, " pad ", layout.pad, " mode ", static_cast<int>(mode));
  Results r = compare(what, t, layout, [&](const Side& s) {
    Guarded a = numbers(s, a_rows, a_cols, 1), b = numbers(s, b_rows, b_cols, 2);
    Guarded c(s.backend, s.dtype == DType::F64 ? DType::F64 : out, M, N, s.layout,
              rounded(random_values(M * N, 3), out));
    run_on(s.backend, c, mode, alpha, a, b);
    return std::vector<Guarded>{c};
  });
  auto absolute = [&](std::int64_t rows, std::int64_t cols, unsigned seed) {
    return tensor_from(oracle(), DType::F64, {rows, cols}, magnitudes(t, rows * cols, seed));
  };
  Tensor size = tensor_from(oracle(), DType::F64, {M, N}, magnitudes(out, M * N, 3));
  run_on(oracle(), size, mode, std::abs(alpha), absolute(a_rows, a_cols, 1),
         absolute(b_rows, b_cols, 2));
  check_close(r.got[0], r.want[0], unit_roundoff(out),
              product_slack(t, out, mode, K, to_host_f64(size), r.want[0],
                            rounded(random_values(M * N, 3), out)),
              what);
}

}  // namespace

TEST_CASE("cuda: products of all shapes and strides") {
  LK_NEEDS_GPU();
  const std::int64_t shapes[][3] = {
      {1, 1, 1},       {64, 48, 32},    {1, 64, 96},    {17, 7, 33},     {128, 1, 64},
      {130, 3, 70},    {5, 130, 257},   {64, 16, 1},    {100, 24, 50},   {7, 5, 2000},
      {16, 576, 1000}, {300, 260, 100}, {129, 257, 13}, {200, 136, 128}, {0, 8, 8},
      {8, 0, 8},       {8, 8, 0},       {96, 2, 4099}};
  for (auto [M, N, K] : shapes)
    for (DType t : kDTypes)
      for (Layout l : kLayouts)
        for (Product op : {Product::NT, Product::NN, Product::TN})
          for (GradMode mode : kModes) {
            check_product(op, M, N, K, t, DType::F32, l, mode, -0.75);
            if (op != Product::TN && t == DType::BF16)
              check_product(op, M, N, K, t, t, l, mode, 1.0);
          }
}

TEST_CASE("cuda: every LoRA rank from 1 to 9, and 16 to 128") {
  LK_NEEDS_GPU();
  for (std::int64_t R : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 64, 128})
    for (DType t : kDTypes) {
      check_product(Product::NT, 50, R, 192, t, t, kContiguous, GradMode::Write, 1.0);  // x Aᵀ
      check_product(Product::NT, 50, 200, R, t, t, kContiguous, GradMode::Add, 2.0);    // S Bᵀ
      check_product(Product::NN, 50, R, 200, t, t, kContiguous, GradMode::Write, 2.0);  // dY B
      check_product(Product::NN, 50, 192, R, t, t, kContiguous, GradMode::Add, 1.0);    // dS A
      check_product(Product::TN, R, 192, 1500, t, DType::F32, kContiguous, GradMode::Add,
                    1.0);  // dA
      check_product(Product::TN, 200, R, 1500, t, DType::F32, kContiguous, GradMode::Write, 0.5);
    }
}

// The plan of joined projections with these parts. There is no kernel for rows that do not start at
// 16 bytes.
ThinPlan thin_plan(const Side& s, std::int64_t in, std::int64_t out, std::int64_t thin,
                   const std::vector<ThinPart>& parts, bool dropout) {
  if (s.layout.pad % 8 != 0) return {};
  ThinShape shape{in, out, thin, s.dtype, dropout, {}};
  for (const ThinPart& p : parts) shape.parts.push_back({p.begin, p.end, p.column, p.rank});
  return ThinPlan(shape);
}

// Dropout with memory for the masks' bits where the plan's kernels keep them.
InputDropout keeping(const Side& s, const ThinPlan& plan, std::int64_t tokens, InputDropout drop) {
  if (drop.p > 0) drop.bits = thin::empty_bits(s.backend, plan, tokens);
  return drop;
}

TEST_CASE("cuda: forward keeps the CPU's masks, and computes the same where it keeps none") {
  LK_NEEDS_GPU();
  struct Shape {
    std::int64_t T, K;
    std::vector<std::int64_t> ranks;
  };
  const std::int32_t first = 40;
  for (const Shape& shape : {Shape{1, 8, {8}},
                             {33, 72, {16, 8}},
                             {64, 128, {64}},
                             {95, 200, {16, 16, 16}},
                             {257, 136, {24, 16, 8, 48}},
                             {130, 264, {1, 20, 4, 9}},
                             {700, 1400, {16, 16, 16}}}) {
    const Side s{gpu(), DType::BF16, DType::BF16, kContiguous};
    const std::int64_t T = shape.T, K = shape.K;
    std::vector<ThinPart> parts;
    std::int64_t S = 0;
    for (std::int64_t rank : shape.ranks) {
      parts.push_back({0, K, S, rank, {}, GradMode::Write, 7 + 3 * static_cast<std::uint32_t>(S)});
      S += ThinPlan::columns_of(rank);
    }
    S = (S + 15) / 16 * 16;
    const ThinPlan plan = thin_plan(s, K, K, S, parts, true);
    REQUIRE(plan.forward() > 0);
    const Guarded x = numbers(s, T, K, 1), a = numbers(s, S, K, 2);
    const Tensor after = to_device(s.backend, Tag::Workspace, {&first, 1});
    const InputDropout drop{0.3f, {9, 2, 0, after.data<std::int32_t>()}};
    const InputDropout kept = keeping(s, plan, T, drop);
    auto forward = [&](const InputDropout& d) {
      Guarded st = numbers(s, T, S, 4);
      thin::forward(s.backend, plan, st, 1.5, x, a, parts, d);
      return st.bytes();
    };
    CHECK(forward(kept) == forward(drop));
    const auto bits = to_host<std::uint8_t>(kept.bits);
    const std::uint32_t threshold = dropout_threshold(drop.p);
    const std::int64_t tile = 64 * 128 / 8, P = std::ssize(parts), across = (K + 127) / 128;
    std::int64_t wrong = 0;
    for (std::int64_t p = 0; p < P; ++p) {
      RandomKey key = drop.key_of(parts[static_cast<std::size_t>(p)]);
      key.step += static_cast<std::uint64_t>(first), key.first_step = nullptr;
      for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t k = 0; k < K; ++k) {
          const std::int64_t at =
              ((t / 64 * across + k / 128) * P + p) * tile + t % 64 * 16 + k % 128 / 8;
          const bool keeps = bits[static_cast<std::size_t>(at)] >> (k % 8) & 1;
          wrong += keeps != dropout_keeps(key, static_cast<std::uint64_t>(t * K + k), threshold);
        }
    }
    CHECK_MESSAGE(wrong == 0, "T ", T, " K ", K, " parts ", P);
  }
}

TEST_CASE("cuda: a backward with dropout and without its forward's bits is refused") {
  LK_NEEDS_GPU();
  const Side s{gpu(), DType::BF16, DType::BF16, kContiguous};
  const std::int64_t T = 40, K = 64, S = 16;
  const Guarded x = numbers(s, T, K, 1), a = numbers(s, S, K, 2), ds = numbers(s, T, S, 3),
                da = statistics(s, S, K, 4), gate = numbers(s, T, K, 5), up = numbers(s, T, K, 6);
  const std::vector<ThinPart> parts{{0, K, 0, S, da, GradMode::Write, 5}};
  const ThinPlan plan = thin_plan(s, K, K, S, parts, true);
  InputDropout drop{0.3f, {9, 2, 0}};
  for (const bool others : {false, true}) {  // none, or those of more tokens
    if (others) drop.bits = thin::empty_bits(s.backend, plan, T + 64);
    CHECK_THROWS_AS(thin::into_x(s.backend, plan, x, ds, a, parts, drop), Error);
    CHECK_THROWS_AS(thin::backward_a(s.backend, plan, ds, x, nullptr, parts, drop), Error);
    CHECK_THROWS_AS(thin::swiglu_backward(s.backend, plan, gate, up, x, gate, up, ds, parts, drop),
                    Error);
  }
}

TEST_CASE("cuda: LoRA's thin products with dropout, a mask for each projection") {
  LK_NEEDS_GPU();
  struct Shape {
    std::int64_t T, K, rank, parts;
  };
  const std::int32_t first = 40;
  for (const Shape& shape : {Shape{1, 8, 8, 1},
                             {64, 128, 16, 1},
                             {100, 136, 8, 3},
                             {700, 264, 32, 2},
                             {1300, 520, 16, 3},
                             {129, 1400, 24, 4},
                             {530, 64, 40, 2},
                             {530, 64, 40, 3},
                             {33, 72, 4, 3},
                             {577, 328, 1, 4},
                             {301, 136, 12, 3},
                             {129, 200, 31, 2},
                             {95, 200, 64, 1},
                             {577, 328, 16, 4},
                             {161, 136, 64, 2},
                             {65, 131, 16, 3},
                             {37, 15, 3, 2}})
    for (GradMode mode : {GradMode::Write, GradMode::Add})
      for (Layout layout : {kContiguous, kStrided, kOdd})
        for (bool normed : {false, true}) {
          const std::int64_t T = shape.T, K = shape.K, R = shape.rank, P = shape.parts,
                             C = ThinPlan::columns_of(R), S = (P * C + 15) / 16 * 16;
          if (left_out(T * K * S)) continue;
          auto run = [&](const Side& s, bool size) {
            auto input = [&](std::int64_t rows, std::int64_t cols, unsigned seed) {
              return size ? Guarded(s.backend, s.dtype, rows, cols, s.layout,
                                    magnitudes(s.rounded, rows * cols, seed))
                          : numbers(s, rows, cols, seed);
            };
            std::vector<double> factors = size ? magnitudes(s.rounded, S * K, 2)
                                               : rounded(random_values(S * K, 2), s.rounded);
            for (std::int64_t i = 0; i < S * K; ++i)
              if (i / K % C >= R) factors[static_cast<std::size_t>(i)] = 0;
            Guarded a(s.backend, s.dtype, S, K, s.layout, factors);
            Guarded x = input(T, K, 1), ds = input(T, S, 3), st = input(T, S, 4),
                    dx = input(T, K, 5);
            std::vector<Guarded> out{st, dx};
            std::vector<ThinPart> parts;
            for (std::int64_t p = 0; p < P; ++p) {
              const unsigned seed = 20 + static_cast<unsigned>(p);
              out.push_back(size ? Guarded(s.backend, s.stat(), R, K, kContiguous,
                                           magnitudes(DType::F32, R * K, seed))
                                 : statistics(s, R, K, seed));
              parts.push_back({0, K, p * C, R, out.back(), mode, seed});
            }
            const Tensor after = to_device(s.backend, Tag::Workspace, {&first, 1});
            const ThinPlan plan = thin_plan(s, K, K, S, parts, true);
            const InputDropout drop =
                keeping(s, plan, T, {0.3f, {9, 2, 0, after.data<std::int32_t>()}});
            NormedInput norm{
                s.backend.empty(Tag::Workspace, s.stat(), {T}),
                Weight("gain", tensor_from(s.backend, s.dtype, {K},
                                           size ? magnitudes(s.rounded, K, 8)
                                                : rounded(random_values(K, 8), s.rounded))),
                1e-5};
            Tensor scratch = s.backend.empty(Tag::Workspace, s.dtype, {T, K});
            if (normed) s.backend.rmsnorm_forward(scratch, norm.rstd, x, norm.gain, norm.eps);
            thin::forward(s.backend, plan, st, 1.5, x, a, parts, drop);
            thin::into_x(s.backend, plan, dx, ds, a, parts, drop);
            thin::backward_a(s.backend, plan, ds, x, normed ? &norm : nullptr, parts, drop);
            return out;
          };
          const std::string what =
              concat("thin products with dropout T ", T, " K ", K, " rank ", R, " x ", P, " pad ",
                     layout.pad, " mode ", static_cast<int>(mode), normed ? " normed" : "");
          Results r =
              compare(what, DType::BF16, layout, [&](const Side& s) { return run(s, false); });
          std::vector<Guarded> sizes = run({oracle(), DType::F64, DType::BF16, kContiguous}, true);
          // What doesn't suit the kernels takes masked copies, which are rounded to BF16.
          const bool copies = K % 8 != 0 || S > 96 || layout.pad % 8 != 0;
          for (std::size_t i = 0; i < r.got.size(); ++i) {
            const std::int64_t length = i == 0 ? K : i == 1 ? R : T;
            const std::vector<double> size = sizes[i].values(what);
            std::vector<double> slack =
                f32_slack(4 + std::sqrt(static_cast<double>(length)) / 4, size);
            const double roundings = (copies ? (i == 1 ? 2.0 * P : 1) : 0) + (i > 1 && normed);
            for (std::size_t j = 0; j < size.size(); ++j)
              slack[j] += roundings * unit_roundoff(DType::BF16) * size[j];
            check_close(r.got[i], r.want[i], unit_roundoff(i < 2 ? DType::BF16 : DType::F32), slack,
                        concat(what, " output ", i));
          }
        }
}

TEST_CASE("cuda: LoRA's thin products in backward, several projections at once") {
  LK_NEEDS_GPU();
  struct Shape {
    std::int64_t T;
    std::vector<std::int64_t> widths;
    std::int64_t rank;
  };
  for (const Shape& shape : {Shape{1, {8}, 8},
                             {64, {128}, 16},
                             {100, {136, 24, 24}, 8},
                             {700, {264, 72}, 32},
                             {1300, {40, 520, 8}, 16},
                             {2500, {1400}, 16},
                             {530, {64, 64}, 40},
                             {530, {64, 64}, 33},
                             {601, {40, 520, 8}, 1},
                             {333, {136, 72}, 27},
                             {700, {264, 72, 72}, 4},
                             {37, {15, 6}, 3}})
    for (GradMode mode : {GradMode::Write, GradMode::Add})
      for (Layout layout : {kContiguous, kStrided, kOdd})
        for (bool normed : {false, true}) {
          const std::int64_t T = shape.T, R = shape.rank, P = std::ssize(shape.widths);
          const std::int64_t C = ThinPlan::columns_of(R), S = (P * C + 15) / 16 * 16;
          std::int64_t N = 0, K = shape.widths[0];
          for (std::int64_t w : shape.widths) N += w;
          if (left_out(T * N * S)) continue;
          // b is block-diagonal; `size` asks for the same of absolute values.
          auto run = [&](const Side& s, bool size) {
            auto input = [&](std::int64_t rows, std::int64_t cols, unsigned seed) {
              return size ? Guarded(s.backend, s.dtype, rows, cols, s.layout,
                                    magnitudes(s.rounded, rows * cols, seed))
                          : numbers(s, rows, cols, seed);
            };
            std::vector<double> factors = size ? magnitudes(s.rounded, N * S, 3)
                                               : rounded(random_values(N * S, 3), s.rounded);
            std::int64_t row = 0;
            for (std::int64_t p = 0; p < P; ++p)
              for (std::int64_t end = row + shape.widths[static_cast<std::size_t>(p)]; row < end;
                   ++row)
                for (std::int64_t j = 0; j < S; ++j)
                  if (j < p * C || j >= p * C + R)
                    factors[static_cast<std::size_t>(row * S + j)] = 0;
            Guarded dy = input(T, N, 1), st = input(T, S, 2), ds = input(T, S, 4),
                    ds2 = input(T, S, 5), x = input(T, K, 6);
            Guarded b(s.backend, s.dtype, N, S, s.layout, factors);
            Guarded rstd(s.backend, s.stat(), T, 1, kContiguous,
                         rounded(magnitudes(DType::F32, T, 7), DType::F32));
            Weight gain("gain", tensor_from(s.backend, s.dtype, {K},
                                            size ? magnitudes(s.rounded, K, 8)
                                                 : rounded(random_values(K, 8), s.rounded)));
            std::vector<Guarded> out{ds};
            std::vector<ThinPart> parts_b, parts_a;
            std::int64_t begin = 0;
            for (std::int64_t p = 0; p < P; ++p) {
              const std::int64_t width = shape.widths[static_cast<std::size_t>(p)];
              const unsigned seed = 20 + static_cast<unsigned>(p);
              auto gradient = [&](std::int64_t rows, std::int64_t cols, unsigned at) {
                return size ? Guarded(s.backend, s.stat(), rows, cols, kContiguous,
                                      magnitudes(DType::F32, rows * cols, at))
                            : statistics(s, rows, cols, at);
              };
              out.push_back(gradient(width, R, seed));
              parts_b.push_back({begin, begin + width, p * C, R, out.back(), mode});
              out.push_back(gradient(R, K, seed + 10));
              parts_a.push_back({0, K, p * C, R, out.back(), mode});
              begin += width;
            }
            const ThinPlan plan = thin_plan(s, K, N, S, parts_b, false);
            thin::backward_b(s.backend, plan, ds, 1.5, dy, b, st, parts_b);
            // rstd is not x's own statistic: both sides agree only where it is used as given.
            const NormedInput norm{rstd.vector(), gain, 1e-5};
            Tensor input_x = x;
            if (normed) {
              Tensor scratch = s.backend.empty(Tag::Workspace, s.dtype, {T, K});
              s.backend.rmsnorm_forward(scratch, norm.rstd, input_x, gain, 1e-5);
            }
            thin::backward_a(s.backend, plan, ds2, input_x, normed ? &norm : nullptr, parts_a);
            return out;
          };
          const std::string what = concat("thin products T ", T, " N ", N, " rank ", R, " pad ",
                                          layout.pad, " mode ", static_cast<int>(mode));
          Results r =
              compare(what, DType::BF16, layout, [&](const Side& s) { return run(s, false); });
          std::vector<Guarded> sizes = run({oracle(), DType::F64, DType::BF16, kContiguous}, true);
          for (std::size_t i = 0; i < r.got.size(); ++i) {
            const bool is_ds = i == 0, is_da = i > 0 && i % 2 == 0;
            const std::int64_t length = is_ds ? N : T;
            const std::vector<double> size = sizes[i].values(what);
            std::vector<double> slack =
                f32_slack(4 + std::sqrt(static_cast<double>(length)) / 4, size);
            // A normed x, or ds times rstd, is rounded to BF16 before it is multiplied.
            if (is_da && normed)
              for (std::size_t j = 0; j < size.size(); ++j)
                slack[j] += unit_roundoff(DType::BF16) * size[j];
            check_close(r.got[i], r.want[i], unit_roundoff(is_ds ? DType::BF16 : DType::F32), slack,
                        concat(what, " output ", i));
          }
        }
}

TEST_CASE("cuda: a product onto another matrix") {
  LK_NEEDS_GPU();
  const std::int64_t shapes[][3] = {{40, 64, 256}, {17, 33, 130}, {128, 576, 592}, {5, 8, 16}};
  for (auto [M, N, K] : shapes)
    for (DType t : kDTypes)
      for (Layout l : kLayouts) {
        const std::int64_t m = M, n = N, k = K;
        Results r = compare("product onto", t, l, [&](const Side& s) {
          Guarded a = numbers(s, m, k, 1), b = numbers(s, n, k, 2), h = numbers(s, m, n, 3),
                  c = numbers(s, m, n, 4);
          s.backend.matmul_nt(c, GradMode::Write, 1.0, a, b, h);
          return std::vector<Guarded>{c, h};
        });
        auto absolute = [&](std::int64_t rows, std::int64_t cols, unsigned seed) {
          return tensor_from(oracle(), DType::F64, {rows, cols}, magnitudes(t, rows * cols, seed));
        };
        Tensor size = oracle().empty(Tag::Workspace, DType::F64, {M, N});
        oracle().matmul_nt(size, GradMode::Write, 1.0, absolute(M, K, 1), absolute(N, K, 2),
                           absolute(M, N, 3));
        const std::vector<double> before = rounded(random_values(M * N, 3), t);
        std::vector<double> slack = f32_slack(
            t == DType::F32 ? 8 : 4 + std::sqrt(static_cast<double>(K)) / 4, to_host_f64(size));
        if (t == DType::BF16)  // the product is rounded before it is added
          for (std::size_t i = 0; i < slack.size(); ++i)
            slack[i] += unit_roundoff(t) * std::abs(r.want[0][i] - before[i]);
        check_close(r.got[0], r.want[0], unit_roundoff(t), slack, "product onto");
        CHECK(r.got[1] == before);  // h itself is as before
      }
}

TEST_CASE("cuda: linear with a frozen weight") {
  LK_NEEDS_GPU();
  const std::int64_t shapes[][3] = {
      {40, 64, 96}, {1, 33, 17}, {7, 128, 5}, {30, 264, 72}, {0, 8, 8}};
  for (auto [T, N, K] : shapes)
    for (DType t : kDTypes)
      for (GradMode mode : kModes) {
        std::int64_t n = N, k = K, rows = T;
        Results r = compare("linear", t, kContiguous, [&](const Side& s) {
          Guarded y = numbers(s, rows, n, 1), x = numbers(s, rows, k, 2),
                  dx = numbers(s, rows, k, 3), dy = numbers(s, rows, n, 4);
          Weight w = frozen(s, {n, k}, 5);
          s.backend.linear_forward(y, x, w);
          s.backend.linear_backward_x(dx, mode, dy, w);
          return std::vector<Guarded>{y, dx};
        });
        Tensor y = tensor_from(oracle(), DType::F64, {T, N}, magnitudes(t, T * N, 1));
        Tensor dx = tensor_from(oracle(), DType::F64, {T, K}, magnitudes(t, T * K, 3));
        Weight w("w", tensor_from(oracle(), DType::F64, {N, K}, magnitudes(t, N * K, 5)));
        oracle().prepare_linear(w);
        oracle().linear_forward(
            y, tensor_from(oracle(), DType::F64, {T, K}, magnitudes(t, T * K, 2)), w);
        oracle().linear_backward_x(
            dx, mode, tensor_from(oracle(), DType::F64, {T, N}, magnitudes(t, T * N, 4)), w);
        double u = unit_roundoff(t);
        check_close(r.got[0], r.want[0], u,
                    product_slack(t, t, GradMode::Write, K, to_host_f64(y), r.want[0], {}),
                    "linear_forward");
        check_close(r.got[1], r.want[1], u,
                    product_slack(t, t, mode, N, to_host_f64(dx), r.want[1],
                                  rounded(random_values(T * K, 3), t)),
                    "linear_backward_x");
      }
}

TEST_CASE("cuda: a row of a frozen product has the same bits whatever other rows there are") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (auto [N, K] : {std::pair<std::int64_t, std::int64_t>{33, 64}, {576, 1536}, {1, 4096}}) {
      const std::int64_t most = t == DType::BF16 ? 32 : 8;  // as linear_few.h has it
      Tensor x = random_tensor(gpu(), t, {most, K}, 1);
      Weight w("w", random_tensor(gpu(), t, {N, K}, 2)),
          gain("gain", random_tensor(gpu(), t, {K}, 3));
      Tensor gate = random_tensor(gpu(), t, {most, K}, 4);
      enum Input { Plain, Normed, Gated };
      auto product = [&](const Tensor& rows, Input made) {
        Tensor y = gpu().empty(Tag::Workspace, t, {rows.rows(), N});
        const LinearPart part{y, &w};
        MadeInput input{&gain, 1e-5, gpu().empty(Tag::Workspace, t, rows.shape())};
        if (made == Gated) input.gate = gate.slice_rows(0, rows.rows());
        cached::linear_parts(gpu(), rows, made == Plain ? nullptr : &input, {&part, 1});
        return to_host_f64(y);
      };
      for (Input made : {Plain, Normed, Gated}) {
        const std::vector<double> all = product(x, made);
        for (std::int64_t rows = 1; rows < most; ++rows) {
          const std::vector<double> some = product(x.slice_rows(0, rows), made);
          CHECK(std::equal(some.begin(), some.end(), all.begin()));
        }
      }
    }
}

TEST_CASE("cuda: several frozen products of one input") {
  LK_NEEDS_GPU();
  using Widths = std::vector<std::int64_t>;
  // x unchanged, normed or gated, with or without addends, and widths of K around what a block takes
  // at a time.
  enum Input { Plain, Normed, Silu, Gelu };
  auto check_parts = [](const Widths& widths, std::int64_t T, std::int64_t K, DType t, Layout l,
                        Input made, bool onto) {
    const char* of_input[] = {"", " normed", " gated by silu", " gated by gelu"};
    const std::string what = concat("parts ", dtype_name(t), " T ", T, " K ", K, " pad ", l.pad,
                                    of_input[made], onto ? " onto" : "");
    Results r = compare(what, t, l, [&](const Side& s) {
      Guarded x = numbers(s, T, K, 1), n = numbers(s, T, K, 2), gate = numbers(s, T, K, 4);
      Weight gain = frozen(s, {K}, 3);
      std::vector<Guarded> y, addends;
      std::vector<Weight> w;
      for (unsigned i = 0; i < widths.size(); ++i) {
        y.push_back(numbers(s, T, widths[i], 10 + i));
        addends.push_back(numbers(s, T, widths[i], 20 + i));
        w.push_back(frozen(s, {widths[i], K}, 30 + i));
      }
      std::vector<LinearPart> parts;
      for (std::size_t i = 0; i < y.size(); ++i)
        parts.push_back({y[i], &w[i], onto ? Tensor(addends[i]) : Tensor()});
      MadeInput input{&gain, 1e-5, n};
      if (made == Silu || made == Gelu)
        input.gate = gate, input.act = made == Silu ? Activation::Silu : Activation::Gelu;
      cached::linear_parts(s.backend, x, made == Plain ? nullptr : &input, parts);
      y.push_back(n);
      return y;
    });
    const std::vector<double>& got_norm = r.got.back();
    std::vector<double> input = r.want.back();
    // A sigmoid's argument z is below 15 and has at most four roundings; what it is wrong by, so is
    // e^z in relation. fast_sigmoid() adds 2 + 1.2 z units.
    const int units = made == Plain ? 0 : made == Normed ? 8 : 4 * 15 + 20;
    check_close(got_norm, input, made != Plain ? unit_roundoff(t) : 0, f32_slack(units, input),
                what + " input");
    for (double& x : input) x = std::abs(x);
    if (made == Plain) input = magnitudes(t, T * K, 1);
    for (unsigned i = 0; i < widths.size(); ++i) {
      Tensor size = oracle().empty(Tag::Workspace, DType::F64, {T, widths[i]});
      oracle().matmul_nt(
          size, GradMode::Write, 1.0, tensor_from(oracle(), DType::F64, {T, K}, input),
          tensor_from(oracle(), DType::F64, {widths[i], K}, magnitudes(t, widths[i] * K, 30 + i)));
      const std::vector<double> sizes = to_host_f64(size),
                                addend = rounded(random_values(T * widths[i], 20 + i), t);
      std::vector<double> slack = product_slack(t, t, GradMode::Write, K, sizes, r.want[i], {});
      for (std::size_t j = 0; j < slack.size(); ++j) {
        // The input that is made is rounded; with many rows so is the product, before the addend is
        // added.
        if (made != Plain) slack[j] += (unit_roundoff(t) + units * 0x1p-24) * sizes[j];
        if (onto)
          slack[j] +=
              0x1p-24 * std::abs(addend[j]) + unit_roundoff(t) * std::abs(r.want[i][j] - addend[j]);
      }
      check_close(r.got[i], r.want[i], unit_roundoff(t), slack, what);
    }
  };
  using Size = std::pair<std::int64_t, std::int64_t>;  // T, K
  const Size sizes[] = {{1, 8},   {1, 264}, {1, 8200}, {2, 1536}, {3, 7},     {4, 8200},
                        {5, 264}, {8, 520}, {9, 1536}, {17, 64},  {32, 1536}, {33, 264}};
  for (const Widths& widths : {Widths{33}, Widths{64, 16, 17}, Widths{5, 128}})
    for (auto [T, K] : sizes)
      for (DType t : kDTypes)
        for (Layout l : kLayouts)
          for (Input made : {Plain, Normed, Silu, Gelu})
            for (bool onto : {false, true}) check_parts(widths, T, K, t, l, made, onto);
}

TEST_CASE("cuda: many adapters in one batch") {
  LK_NEEDS_GPU();
  const std::vector<std::int32_t> offsets{0, 1, 1, 6, 8, 40}, which{2, 0, 1, -1, 0};
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (auto [N, K] : {std::pair<std::int64_t, std::int64_t>{33, 70}, {192, 576}, {2048, 64}}) {
        Results r = compare(concat("lora_segments ", N, "x", K), t, l, [&](const Side& s) {
          auto factors = [&](std::int64_t rank, unsigned seed, float scale) {
            auto values = [&](std::int64_t cols, unsigned more) {
              return tensor_from(s.backend, s.dtype, {rank, cols},
                                 rounded(random_values(rank * cols, seed + more), s.rounded));
            };
            return LoraFactors{values(K, 0), values(N, 1), scale};
          };
          LoraTable table =
              make_lora_table(s.backend, {factors(5, 1, 2.0f), factors(16, 3, 0.5f), {}});
          Guarded x = numbers(s, 40, K, 5), y = numbers(s, 40, N, 6);
          s.backend.adapter_kernels()->lora_segments(y, x, table, make_segments(s.backend, offsets),
                                                     {which, indices(s, which)});
          return std::vector<Guarded>{y};
        });
        // scale sum_r (sum_k |x| |a|) |b|, with |.| of a normal number 0.8 on average and rarely
        // above 4; both sums and the last addition in F32.
        const double magnitude = 2 * 16 * static_cast<double>(K) * 4;
        check_close(r.got[0], r.want[0], unit_roundoff(t),
                    {0x1p-24 * static_cast<double>(K + 17) * magnitude}, "lora_segments");
      }
}

TEST_CASE("cuda: adding a zero product changes no bit") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (std::int64_t R : {1, 7, 8, 16, 64})
      for (std::int64_t T : {1, 37, 512}) {
        Tensor c = random_tensor(gpu(), t, {T, 320}, 1), s = random_tensor(gpu(), t, {T, R}, 2);
        Tensor b = tensor_from(gpu(), t, {320, R}, std::vector<double>(320 * R, 0.0));
        std::vector<double> before = to_host_f64(c);
        gpu().matmul_nt(c, GradMode::Add, 2.0, s, b);
        CHECK(to_host_f64(c) == before);
      }
}

// ---- DoRA -------------------------------------------------------------------------------------
// Two parts with a gap between them, in columns and in thin columns.
std::vector<DoraPart> two_parts(std::int64_t cols, const Tensor& m, const Tensor& inverse,
                                const Tensor& dm, GradMode mode) {
  const auto part = [&](std::int64_t begin, std::int64_t end) {
    DoraPart p{.begin = begin, .end = end, .mode = mode};
    const auto ours = [&](const Tensor& t) { return t.slice_rows(begin, end); };
    p.m = ours(m), p.inverse = ours(inverse), p.dm = ours(dm);
    return p;
  };
  const std::int64_t third = cols / 24 * 8;
  if (third == 0) return {part(0, cols)};
  return {part(0, third), part(2 * third, cols)};
}

TEST_CASE("cuda: DoRA's columns times m / norm, and m's gradient") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("dora", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2),
                shifted = numbers(s, rows, cols, 1), dm = statistics(s, 1, cols, 3),
                m = statistics(s, 1, cols, 4), inverse = statistics(s, 1, cols, 5);
        const Weight shift = frozen(s, {cols}, 6);
        DoraKernels& kernels = *s.backend.dora_kernels();
        const auto parts = two_parts(cols, m.vector(), inverse.vector(), dm.vector(), mode);
        kernels.scale_columns(y, x, mode == GradMode::Add ? y : Tensor(), parts);
        kernels.scale_columns(shifted, x, {}, parts, &shift);
        Guarded dv = numbers(s, rows, cols, 8);
        kernels.scale_columns_backward(dv, x, numbers(s, rows, cols, 7), parts);
        return std::vector{y, shifted, dm, dv};
      });
      // Factors of normal numbers: m inverse x is rarely above 64. Three products and an addition.
      const double u = unit_roundoff(t);
      check_close(r.got[0], r.want[0], u, {0x1p-24 * 4 * 64}, "scale_columns");
      check_close(r.got[1], r.want[1], u, {0x1p-24 * 6 * 128}, "scale_columns around a shift");
      const double terms = static_cast<double>(rows + 4);
      check_close(r.got[2], r.want[2], 0x1p-24, {0x1p-24 * terms * (terms * 4 + 16) * 4},
                  "m's gradient");
      check_close(r.got[3], r.want[3], u, {0x1p-24 * 4 * 64}, "dv");
    }
  });
}

TEST_CASE("cuda: DoRA's row norms") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (std::int64_t N : {1, 7, 129, 1000})
      for (std::int64_t R : {1, 3, 8, 16, 64, 96}) {
        Results r = compare("inverse_norms", t, kContiguous, [&](const Side& s) {
          Guarded inverse = statistics(s, 1, N, 1), b = numbers(s, N, 2 * R, 2, 0.1),
                  wa = statistics(s, N, 2 * R, 3, 0.1), gram = statistics(s, 2 * R, 2 * R, 4, 0.1);
          // Far above what the cross terms take away, as |W| is in a model.
          Tensor w_sq = tensor_from(s.backend, s.stat(), {N},
                                    std::vector<double>(static_cast<std::size_t>(N), 50.0));
          // Projections of one row to a third of N, more than a launch takes, and of two widths of rank.
          std::vector<DoraNorms> all;
          const std::int64_t most = std::max<std::int64_t>(1, N / 12);
          for (std::int64_t begin = 0; begin < N;) {
            const std::int64_t end = all.empty() ? (N + 2) / 3 : std::min(N, begin + most);
            const std::int64_t column = all.size() % 2 ? R : 0,
                               last = all.size() % 3 ? column + R : column + (R + 1) / 2;
            const auto rows = [&](const Tensor& of) { return of.slice_rows(begin, end); };
            all.push_back({rows(inverse.vector()), rows(w_sq), rows(wa).slice_cols(column, last),
                           Tensor(gram).slice_rows(column, last).slice_cols(column, last),
                           rows(b).slice_cols(column, last), 2.0});
            begin = end;
          }
          s.backend.dora_kernels()->inverse_norms(all);
          return std::vector{inverse};
        });
        // A square of 50 plus R^2 terms of 4 * 0.1^3 at most some 4 each, half of whose relative
        // error 1 / sqrt has.
        const double size = 50 + 0.016 * static_cast<double>(R * R) * 4;
        check_close(r.got[0], r.want[0], 0x1p-24,
                    {0x1p-24 * static_cast<double>(2 * R + 8) * size / 50}, "inverse_norms");
      }
}

// ---- norm, rope, swiglu -----------------------------------------------------------------------
TEST_CASE("cuda: rmsnorm") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("rmsnorm", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2),
                rstd = statistics(s, rows, 1, 3), dx = numbers(s, rows, cols, 4),
                dy = numbers(s, rows, cols, 5);
        Guarded given(
            s.backend, s.stat(), rows, 1, kContiguous,
            rounded(std::vector<double>(static_cast<std::size_t>(rows), 0.9), DType::F32));
        Weight gain = frozen(s, {cols}, 6);
        s.backend.rmsnorm_forward(y, rstd.vector(), x, gain, 1e-5);
        s.backend.rmsnorm_backward(dx, mode, dy, x, gain, given.vector());
        return std::vector<Guarded>{y, rstd, dx};
      });
      double u = unit_roundoff(t);
      check_close(r.got[0], r.want[0], u, f32_slack(8, r.want[0]),
                  label("rmsnorm y", t, rows, cols, l));
      check_close(r.got[1], r.want[1], 0, f32_slack(8, r.want[1]),
                  label("rmsnorm rstd", t, rows, cols, l));
      // |dx0| + r (|g| + |xhat| mean |g xhat|)
      std::vector<double> size = magnitudes(t, rows * cols, 4), x = magnitudes(t, rows * cols, 2),
                          dy = magnitudes(t, rows * cols, 5), gain = magnitudes(t, cols, 6);
      for (std::int64_t i = 0; i < rows; ++i) {
        double mean = 0;
        for (std::int64_t j = 0; j < cols; ++j)
          mean += dy[i * cols + j] * gain[j] * x[i * cols + j] * 0.9 / static_cast<double>(cols);
        for (std::int64_t j = 0; j < cols; ++j)
          size[i * cols + j] += 0.9 * (dy[i * cols + j] * gain[j] + x[i * cols + j] * 0.9 * mean);
      }
      check_close(r.got[2], r.want[2], u, f32_slack(8, size),
                  label("rmsnorm dx", t, rows, cols, l));
    }
  });
}

TEST_CASE("cuda: layernorm") {
  LK_NEEDS_GPU();
  everywhere([](DType t, Layout l, std::int64_t rows, std::int64_t cols) {
    for (GradMode mode : kModes) {
      Results r = compare("layernorm", t, l, [&](const Side& s) {
        Guarded y = numbers(s, rows, cols, 1), x = numbers(s, rows, cols, 2),
                mean = statistics(s, rows, 1, 3), rstd = statistics(s, rows, 1, 7),
                dx = numbers(s, rows, cols, 4), dy = numbers(s, rows, cols, 5);
        auto given = [&](double v) {
          return Guarded(
              s.backend, s.stat(), rows, 1, kContiguous,
              rounded(std::vector<double>(static_cast<std::size_t>(rows), v), DType::F32));
        };
        Guarded given_mean = given(0.25), given_rstd = given(0.9);
        Weight gain = frozen(s, {cols}, 6), bias = frozen(s, {cols}, 8);
        s.backend.layernorm_forward(y, mean.vector(), rstd.vector(), x, gain, bias, 0.01);
        s.backend.layernorm_backward(dx, mode, dy, x, gain, given_mean.vector(),
                                     given_rstd.vector());
        return std::vector<Guarded>{y, mean, rstd, dx};
      });
      double u = unit_roundoff(t);
      std::vector<double> x = magnitudes(t, rows * cols, 2), gain = magnitudes(t, cols, 6),
                          bias = magnitudes(t, cols, 8), dy = magnitudes(t, rows * cols, 5);
      // y: (x - mean) rstd gain + bias, where rstd <= 10; the mean is off by an ulp of mean |x|.
      std::vector<double> size_y, size_mean, size = magnitudes(t, rows * cols, 4);
      for (std::int64_t i = 0; i < rows; ++i) {
        double mean = 0, mean_g = 0, dot = 0;
        for (std::int64_t j = 0; j < cols; ++j) {
          const double n = static_cast<double>(cols), g = dy[i * cols + j] * gain[j];
          mean += x[i * cols + j] / n;
          mean_g += g / n;
          dot += g * (x[i * cols + j] + 0.25) * 0.9 / n;
        }
        size_mean.push_back(mean);
        for (std::int64_t j = 0; j < cols; ++j) {
          const double v = x[i * cols + j];
          size_y.push_back((v + mean) * (1 + (v + mean)) * std::min(r.want[2][i], 10.0) * gain[j] +
                           bias[j]);
          size[i * cols + j] +=
              0.9 * (dy[i * cols + j] * gain[j] + mean_g + (v + 0.25) * 0.9 * dot);
        }
      }
      check_close(r.got[1], r.want[1], 0, f32_slack(8, size_mean),
                  label("layernorm mean", t, rows, cols, l));
      check_close(r.got[2], r.want[2], 0, f32_slack(64, r.want[2]),
                  label("layernorm rstd", t, rows, cols, l));
      check_close(r.got[0], r.want[0], u, f32_slack(16, size_y),
                  label("layernorm y", t, rows, cols, l));
      check_close(r.got[3], r.want[3], u, f32_slack(8, size),
                  label("layernorm dx", t, rows, cols, l));
    }
  });
}

TEST_CASE("cuda: rope") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (int head_dim : {2, 6, 16, 64, 128})
        for (std::int64_t T : {0, 1, 37})
          for (GradMode mode : kModes)
            for (bool inverse : {false, true}) {
              const int heads = 3;
              Results r = compare("rope", t, l, [&](const Side& s) {
                const auto [table, positions] = rotation(s, T, head_dim);
                Guarded y = numbers(s, T, heads * head_dim, 1),
                        x = numbers(s, T, heads * head_dim, 2);
                Guarded in_place = numbers(s, T, heads * head_dim, 2);
                s.backend.rope(y, mode, x, table, positions, head_dim, inverse);
                s.backend.rope(in_place, GradMode::Write, in_place, table, positions, head_dim,
                               inverse);
                return std::vector<Guarded>{y, in_place};
              });
              double u = unit_roundoff(t);
              std::vector<double> size(r.want[0].size(),
                                       10.0);  // |y| + |a cos| + |b sin| of normal numbers
              check_close(r.got[0], r.want[0], u, f32_slack(2, size), "rope");
              check_close(r.got[1], r.want[1], u, f32_slack(2, size), "rope in place");
            }
}

TEST_CASE("cuda: rope into a cache") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (int head_dim : {2, 6, 7, 64, 128})
        for (bool turns : {false, true}) {
          if (turns && head_dim % 2) continue;
          Results r = compare("rope into a cache", t, l, [&](const Side& s) {
            const Rotation turn = turns ? rotation(s, 3, head_dim) : Rotation{};
            Guarded q = numbers(s, 3, 4 * head_dim, 1), k = numbers(s, 3, 2 * head_dim, 2),
                    v = numbers(s, 3, 2 * head_dim, 3), keys = numbers(s, 11, 2 * head_dim, 4),
                    values = numbers(s, 11, 2 * head_dim, 5);
            cached::rope_into_cache(s.backend, q, k, v, {keys, values, indices(s, {10, 2, 7})},
                                    turn.table, turn.positions, head_dim);
            return std::vector<Guarded>{q, keys, values};
          });
          const double u = turns ? unit_roundoff(t) : 0;
          for (std::size_t i : {0, 1}) {
            std::vector<double> size(r.want[i].size(), turns ? 10.0 : 0.0);
            check_close(r.got[i], r.want[i], u, f32_slack(2, size), "rope into a cache");
          }
          CHECK(r.got[2] == r.want[2]);  // values, and the rows that nobody wrote, bit for bit
        }
}

TEST_CASE("cuda: the next inputs of generation, with equal logits, NaN and none that is finite") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout layout : kLayouts)
      for (std::int64_t vocab : {1, 5, 61, 1000, 4099, 50257, 262144}) {
        if (left_out(8 * vocab)) continue;
        const std::string what = concat("choose_next ", dtype_name(t), " ", vocab);
        Results r = compare(what, t, layout, [&](const Side& s) {
          // Whole numbers, so that many are equal.
          std::vector<double> logits = random_values(7 * vocab, 1);
          for (double& x : logits) x = std::round(3 * x);
          const auto fill = [&](std::int64_t row, double value) {
            std::fill_n(logits.begin() + row * vocab, vocab, value);
          };
          fill(1, NAN), fill(2, -INFINITY), fill(3, -2);
          if (vocab > 4) {
            logits[static_cast<std::size_t>(1 * vocab + vocab - 1)] = -7;
            logits[static_cast<std::size_t>(4 * vocab + vocab / 2)] = INFINITY;
            logits[static_cast<std::size_t>(5 * vocab + vocab - 2)] = 1000;
            logits[static_cast<std::size_t>(6 * vocab)] = 1000;
          }
          const Guarded of(s.backend, s.dtype, 7, vocab, s.layout, logits);
          const Tensor numbers[] = {
              indices(s, {1, 2, 3, 4, 5, 6, 7}), indices(s, {10, 20, 30, 40, 50, 60, 70}),
              indices(s, {0, 0, 0, 0, 0, 0, 0}), indices(s, {9, 8, 7, 6, 5, 4, 3})};
          const Tensor chosen = s.backend.empty(Tag::Workspace, DType::F32, {7});
          cached::choose_next(s.backend, {chosen, numbers[0], numbers[1], numbers[2], numbers[3]},
                              of);
          std::vector<double> all;
          for (double x : to_host_f64(chosen)) all.push_back(std::isnan(x) ? -1 : x);
          for (const Tensor& x : numbers)
            for (std::int32_t i : to_host<std::int32_t>(x)) all.push_back(i);
          return std::vector<Guarded>{Guarded(s.backend, DType::F32, 5, 7, kContiguous, all)};
        });
        CHECK(r.got[0] == r.want[0]);
      }
}

TEST_CASE("cuda: swiglu's backward into LoRA's factor") {
  LK_NEEDS_GPU();
  struct Shape {
    std::int64_t T, F, rank, parts;
  };
  for (const Shape& shape : {Shape{1, 8, 8, 1},
                             {64, 128, 16, 1},
                             {100, 136, 8, 1},
                             {700, 264, 8, 2},
                             {1300, 520, 32, 1},
                             {95, 200, 16, 1},
                             {33, 72, 4, 1},
                             {161, 136, 64, 1},
                             {530, 64, 40, 1},
                             {37, 15, 3, 1}})
    for (Layout layout : kLayouts)
      for (auto [mode, drop] : {std::pair{GradMode::Write, 0.0f},
                                {GradMode::Add, 0.0f},
                                {GradMode::Write, 0.3f},
                                {GradMode::Add, 0.3f}}) {
        const GradMode da_mode = mode;
        const float p_drop = drop;
        const auto [T, F, R, P] = shape;
        const std::int64_t rows = T, cols = F, rank = R, parts = P, S = (P * R + 15) / 16 * 16;
        if (left_out(T * F * S)) continue;
        auto run = [&](const Side& s, bool size) {
          auto of = [&](std::int64_t n, unsigned seed, double scale) {
            return size ? magnitudes(s.rounded, n, seed, scale)
                        : rounded(random_values(n, seed, scale), s.rounded);
          };
          auto input = [&](std::int64_t r, std::int64_t c, unsigned seed, double scale = 1) {
            return Guarded(s.backend, s.dtype, r, c, s.layout, of(r * c, seed, scale));
          };
          Guarded gate = input(rows, cols, 2, 6.0), up = input(rows, cols, 3),
                  dy = input(rows, cols, 6), ds = input(rows, S, 7);
          std::vector<Guarded> out{gate, up};
          std::vector<ThinPart> thin_parts;
          for (std::int64_t p = 0; p < parts; ++p) {
            const unsigned seed = 10 + static_cast<unsigned>(p);
            out.push_back(size ? Guarded(s.backend, s.stat(), rank, cols, kContiguous,
                                         magnitudes(DType::F32, rank * cols, seed))
                               : statistics(s, rank, cols, seed));
            thin_parts.push_back({0, cols, p * rank, rank, out.back(), da_mode, seed});
          }
          const ThinPlan plan = thin_plan(s, cols, cols, S, thin_parts, p_drop > 0);
          const InputDropout dropout = keeping(s, plan, rows, {p_drop, {3, 4, 0}});
          if (dropout.bits.defined())  // by a forward, whatever it multiplies
            thin::forward(s.backend, plan, input(rows, S, 9), 1.0, dy, input(S, cols, 8),
                          thin_parts, dropout);
          thin::swiglu_backward(s.backend, plan, gate, up, dy, gate, up, ds, thin_parts, dropout);
          return out;
        };
        const std::string what = concat("thin swiglu T ", T, " F ", F, " rank ", R, " x ", P,
                                        " pad ", layout.pad, " p ", drop);
        Results r =
            compare(what, DType::BF16, layout, [&](const Side& s) { return run(s, false); });
        const double u = unit_roundoff(DType::BF16);
        std::vector<double> gate = magnitudes(DType::BF16, T * F, 2, 6.0),
                            up = magnitudes(DType::BF16, T * F, 3),
                            dy = magnitudes(DType::BF16, T * F, 6), size(gate);
        for (std::size_t i = 0; i < size.size(); ++i) size[i] = dy[i] * up[i] * (1 + gate[i]);
        check_close(r.got[0], r.want[0], u, f32_slack(8, size), what + " dgate");
        check_close(r.got[1], r.want[1], u, f32_slack(8, r.want[1]), what + " dup");
        // y is rounded to BF16 before it is multiplied, a masked copy once more. |silu(g) u| <=
        // silu(|g|) |u|.
        std::vector<Guarded> sizes = run({oracle(), DType::F64, DType::BF16, kContiguous}, true);
        for (std::size_t i = 2; i < r.got.size(); ++i) {
          const std::vector<double> sum = sizes[i].values(what);
          std::vector<double> slack = f32_slack(12 + std::sqrt(static_cast<double>(T)) / 4, sum);
          for (std::size_t j = 0; j < sum.size(); ++j) slack[j] += (drop > 0 ? 2 : 1) * u * sum[j];
          check_close(r.got[i], r.want[i], unit_roundoff(DType::F32), slack, what + " da");
        }
      }
}

// ---- rows -------------------------------------------------------------------------------------
TEST_CASE("cuda: rows are moved bit for bit") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (std::int64_t cols : {1, 7, 64, 1000})
        for (GradMode mode : kModes) {
          Results r = compare("rows", t, l, [&](const Side& s) {
            Tensor some = indices(s, {4, 0, 10, 3}), repeated = indices(s, {4, 4, 0});
            Guarded y = numbers(s, 4, cols, 1), x = numbers(s, 11, cols, 2),
                    dx = numbers(s, 11, cols, 3), e = numbers(s, 3, cols, 4);
            s.backend.gather_rows(y, x, some);
            s.backend.scatter_rows(dx, mode, numbers(s, 4, cols, 5), some);
            s.backend.embedding_forward(e, frozen(s, {11, cols}, 6), repeated);
            Guarded put = numbers(s, 11, cols, 7);
            s.backend.put_rows(put, numbers(s, 4, cols, 5), some);
            return std::vector<Guarded>{y, dx, e, put};
          });
          CHECK(r.got[0] == r.want[0]);
          CHECK(r.got[1] == rounded(r.want[1], t));
          CHECK(r.got[2] == r.want[2]);
          CHECK(r.got[3] == r.want[3]);
        }
}

TEST_CASE("cuda: moving no rows") {
  LK_NEEDS_GPU();
  Side s{gpu(), DType::F32, DType::F32, kContiguous};
  Guarded dx = numbers(s, 3, 8, 1), none = numbers(s, 0, 8, 2), x = numbers(s, 3, 8, 3);
  Tensor index = indices(s, {});
  gpu().gather_rows(none, x, index);
  gpu().scatter_rows(dx, GradMode::Write, none, index);
  CHECK(dx.values("scatter") == std::vector<double>(24, 0.0));
}

// ---- loss -------------------------------------------------------------------------------------
TEST_CASE("cuda: cross-entropy") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (std::int64_t V : {1, 2, 7, 64, 1003, 50257})
        for (std::int64_t n : {0, 1, 5})
          for (auto [gradient, smoothing] :
               {std::pair{false, 0.0}, {true, 0.0}, {false, 0.1}, {true, 0.1}, {true, 0.9}}) {
            const double scale = 0.125;
            std::vector<std::int32_t> at;
            for (std::int64_t i = 0; i < n; ++i)
              at.push_back(static_cast<int>((i * 7919 + V - 1) % V));
            Results r = compare("cross_entropy", t, l, [&](const Side& s) {
              Guarded logits = numbers(s, n, V, 1, 5.0), losses = statistics(s, n, 1, 2);
              s.backend.cross_entropy(losses.vector(), logits, indices(s, at), gradient, scale, {},
                                      smoothing);
              return std::vector<Guarded>{losses, logits};
            });
            std::vector<double> x = magnitudes(t, n * V, 1, 5.0), loss_slack, slack;
            for (std::int64_t i = 0; i < n; ++i) {
              double largest = 1;
              for (std::int64_t j = 0; j < V; ++j) largest = std::max(largest, x[i * V + j]);
              double epsilon =
                  0x1p-24 * (8 + 4 * (largest + 12));  // lse and exponents are this uncertain
              // A mean of V logits in float: each of a thread's sums, at most 1024 terms, and the
              // block's are off by that many roundings of `largest`.
              const double terms = static_cast<double>(std::min<std::int64_t>(V, 1024)) + 16;
              loss_slack.push_back(epsilon + smoothing * 0x1p-24 * terms * largest);
              for (std::int64_t j = 0; j < V; ++j) {
                double p = std::abs(r.want[1][i * V + j]) + (j == at[i] ? 2 * scale : 0) +
                           2 * scale * smoothing / static_cast<double>(V);
                slack.push_back(gradient ? p * epsilon + 1e-38 : 0);
              }
            }
            check_close(r.got[0], r.want[0], 0, loss_slack, concat("cross_entropy loss V ", V));
            check_close(r.got[1], r.want[1], gradient ? unit_roundoff(t) : 0, slack,
                        concat("cross_entropy gradient ", dtype_name(t), " V ", V, " pad ", l.pad));
          }
}

TEST_CASE("cuda: rows without a target, and a factor on the device") {
  LK_NEEDS_GPU();
  for (DType t : kDTypes)
    for (Layout l : kLayouts)
      for (std::int64_t V : {1, 7, 1003, 50257}) {
        const std::vector<std::int32_t> some{0, kNoTarget, static_cast<std::int32_t>(V - 1),
                                             kNoTarget, 0};
        auto run = [&](const Side& s, const std::vector<std::int32_t>& at, double scale,
                       bool factor, bool gradient) {
          Guarded logits = numbers(s, 5, V, 1, 5.0), losses = statistics(s, 5, 1, 2);
          Tensor third = tensor_from(s.backend, s.stat(), {1}, {round_to(DType::F32, 1.0 / 3)});
          s.backend.cross_entropy(losses.vector(), logits, indices(s, at), gradient, scale,
                                  factor ? third : Tensor());
          return std::vector<Guarded>{losses, logits};
        };
        for (bool gradient : {false, true}) {
          Results with = compare("cross_entropy", t, l,
                                 [&](const Side& s) { return run(s, some, 0.5, true, gradient); });
          Results plain = compare("cross_entropy", t, l, [&](const Side& s) {
            return run(s, {0, 0, static_cast<std::int32_t>(V - 1), 0, 0},
                       0.5 * round_to(DType::F32, 1.0 / 3), false, gradient);
          });
          for (std::size_t i = 0; i < 5; ++i) {
            const bool counts = i % 2 == 0;
            CHECK(with.got[0][i] == (counts ? plain.got[0][i] : 0.0));
            bool same = true;
            for (std::size_t j = i * static_cast<std::size_t>(V);
                 j < (i + 1) * static_cast<std::size_t>(V); ++j)
              same &= with.got[1][j] == (counts || !gradient ? plain.got[1][j] : 0.0);
            CHECK_MESSAGE(same, "gradient ", dtype_name(t), " V ", V, " row ", i);
          }
        }
      }
}

TEST_CASE("cuda: cross-entropy of extreme logits") {
  LK_NEEDS_GPU();
  double inf = INFINITY;
  Tensor logits = tensor_from(gpu(), DType::F32, {3, 4},
                              {-inf, 0, -inf, -inf, 3e38, -3e38, 0, 1, 1e4, 1e4, 1e4, 1e4});
  Tensor losses = gpu().empty(Tag::Workspace, DType::F32, {3});
  gpu().cross_entropy(losses, logits,
                      to_device(gpu(), Tag::Workspace, std::vector<std::int32_t>{1, 0, 3}), true,
                      1.0);
  std::vector<double> l = to_host_f64(losses);
  CHECK(l[0] == 0);
  CHECK(l[1] == 0);
  CHECK(l[2] == doctest::Approx(std::log(4.0)));
  for (double g : to_host_f64(logits)) CHECK(std::isfinite(g));

  Tensor bad = tensor_from(gpu(), DType::F32, {1, 4}, {0, NAN, 1, 2});
  gpu().cross_entropy(losses.slice_rows(0, 1), bad,
                      to_device(gpu(), Tag::Workspace, std::vector<std::int32_t>{0}), true, 1.0);
  CHECK(std::isnan(to_host_f64(losses)[0]));
}

TEST_CASE("cuda: sums") {
  LK_NEEDS_GPU();
  for (std::int64_t n : {0, 1, 31, 1000, 4096, 4097, 300001})
    for (GradMode mode : kModes) {
      Results r = compare("sum", DType::F32, kContiguous, [&](const Side& s) {
        Guarded out = statistics(s, 1, 1, 1), x = statistics(s, 1, n, 2),
                squares = statistics(s, 1, 1, 3);
        s.backend.sum(out.vector(), mode, -0.5, x.vector());
        std::vector<Tensor> tensors = {x.vector(), statistics(s, 1, 77, 4).vector(),
                                       statistics(s, 1, 0, 5).vector(), statistics(s, 64, 129, 6)};
        s.backend.sum_squares(squares.vector(), tensors);
        return std::vector<Guarded>{out, squares};
      });
      double size = 1;
      for (double x : magnitudes(DType::F32, n, 2)) size += 0.5 * x;
      check_close(r.got[0], r.want[0], 0, f32_slack(8, {size}), "sum");
      check_close(r.got[1], r.want[1], 0, f32_slack(8, r.want[1]), "sum_squares");
    }
}

// ---- optim ------------------------------------------------------------------------------------
namespace {

// `n_slots` parameters of odd sizes; returns value, m, v, compute of each after one update.
std::vector<Guarded> update(const Side& s, int n_slots, const AdamWStep& step, double norm_sq) {
  std::vector<Guarded> out;
  std::vector<AdamWSlot> slots;
  for (int i = 0; i < n_slots; ++i) {
    std::int64_t n = i == 1 ? 0 : i == 2 ? 9001 : 1 + 37 * i;
    unsigned seed = 100u * static_cast<unsigned>(i);
    Guarded value = statistics(s, 1, n, seed + 1), m = statistics(s, 1, n, seed + 2, 0.01);
    Guarded grad = statistics(s, 1, n, seed + 4);
    std::vector<double> second = rounded(random_values(n, seed + 3, 0.01), DType::F32);
    for (double& x : second) x = std::abs(x);
    Guarded v(s.backend, s.stat(), 1, n, kContiguous, second);
    Guarded compute(s.backend, DType::BF16, 1, n, kContiguous,
                    std::vector<double>(static_cast<std::size_t>(n), 0.0));
    slots.push_back({.value = value.vector(),
                     .grad = grad.vector(),
                     .m = m.vector(),
                     .v = v.vector(),
                     .compute = i % 2 ? Tensor() : compute.vector(),
                     .weight_decay = i % 3 ? 0.0f : 0.1f,
                     .lr_factor = i % 4 ? 1.0f : 3.0f});
    out.insert(out.end(), {value, m, v, compute});
  }
  s.backend.adamw(slots, step, tensor_from(s.backend, s.stat(), {1}, {norm_sq}));
  return out;
}

}  // namespace

TEST_CASE("cuda: adamw") {
  LK_NEEDS_GPU();
  for (std::int64_t step : {1, 2, 1000})
    for (float max_norm : {0.0f, 1.0f, 100.0f})
      for (int n_slots : {1, 5, 400}) {  // 400: more than one table
        AdamWStep a{.lr = 1e-2f, .step = step, .max_norm = max_norm};
        Results r = compare("adamw", DType::F32, kContiguous,
                            [&](const Side& s) { return update(s, n_slots, a, 300.0); });
        for (std::size_t i = 0; i < r.got.size(); i += 4) {
          std::vector<double> size(r.want[i].size(), 8.0);  // |p| + |update| and their like
          check_close(r.got[i], r.want[i], 0x1p-24, f32_slack(8, size), "adamw value");
          check_close(r.got[i + 1], r.want[i + 1], 0x1p-24, f32_slack(4, size), "adamw m");
          check_close(r.got[i + 2], r.want[i + 2], 0x1p-24, f32_slack(8, size), "adamw v");
          if (i / 4 % 2 == 0)
            CHECK(r.got[i + 3] == rounded(r.got[i], DType::BF16));
          else
            CHECK(r.got[i + 3] == std::vector<double>(r.got[i].size(), 0.0));
        }
      }
}

TEST_CASE("cuda: many copies at once") {
  LK_NEEDS_GPU();
  for (const Layout layout : kLayouts) {
    const Results r = compare("copy_many", DType::F32, layout, [&](const Side& s) {
      // One long vector that begins at an odd address; pieces of it go into matrices of both dtypes, some
      // with a row stride, and some come back.
      constexpr std::int64_t kSizes[][2] = {{1, 1},  {1, 3},   {1, 9001}, {7, 4104}, {5, 131},
                                            {0, 16}, {64, 96}, {300, 40}, {3, 7},    {2, 4096}};
      std::vector<Guarded> out;
      std::vector<SliceKernels::Copy> copies;
      Guarded source = statistics(s, 1, 900001, 1), back = statistics(s, 1, 900001, 2);
      std::int64_t at = 1;
      for (int i = 0;; ++i) {
        const auto [rows, cols] = kSizes[i % 10];
        const std::int64_t n = rows * cols;
        if (at + n > 800000) break;
        const Tensor from = source.vector().slice_rows(at, at + n);
        if (i % 3 == 2) {
          copies.push_back({back.vector().slice_rows(at, at + n), from});
        } else {
          Guarded to(s.backend, i % 3 ? DType::BF16 : s.dtype, rows, cols, s.layout,
                     std::vector<double>(static_cast<std::size_t>(n), 0.0));
          copies.push_back({to, from});
          out.push_back(to);
        }
        at += n + i % 7;  // aligned or not
      }
      for (int i = 0; i < 1000; ++i)  // more than two tables
        copies.push_back({back.vector().slice_rows(800000 + 5 * i, 800000 + 5 * i + 4),
                          source.vector().slice_rows(3 * i, 3 * i + 4)});
      s.backend.slice_kernels()->copy_many(copies);
      out.push_back(back);
      return out;
    });
    CHECK(r.got.size() > 50);
    for (std::size_t i = 0; i < r.got.size(); ++i) CHECK(r.got[i] == r.want[i]);
  }
}

TEST_CASE("cuda: adamw skips a step that is not finite") {
  LK_NEEDS_GPU();
  Side s{gpu(), DType::F32, DType::F32, kContiguous};
  AdamWStep step{.lr = 0.1f, .step = 1, .max_norm = 1.0f};
  for (double norm_sq : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    std::vector<Guarded> out = update(s, 3, step, norm_sq);
    for (unsigned i : {0u, 2u}) {
      std::int64_t n = i == 2 ? 9001 : 1;
      CHECK(out[4 * i].values("value") == rounded(random_values(n, 100 * i + 1), DType::F32));
      CHECK(out[4 * i + 1].values("m") == rounded(random_values(n, 100 * i + 2, 0.01), DType::F32));
      CHECK(out[4 * i + 3].values("compute") ==
            std::vector<double>(static_cast<std::size_t>(n), 0.0));
    }
  }
}
