// Products with frozen E4M3 matrices in FP8: rounding, the algebra of both ways, and the proof that a
// device gives before it is relied on. On a GPU: the CPU's codes, bit for bit, and its products.
#include "lora/joined.h"
#include "modelfile/base_precision.h"
#include "modelfile/quantise.h"
#include "parity.h"
#include "tensor/dense_scratch.h"
#include "tensor/fp8_probe.h"
#include "tensor/fp8_product.h"
#include "tensor/quantised_kernels.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

// A random matrix as `--base-precision fp8` makes it, and its rows' codes and scales.
struct Fp8Matrix {
  HostPlanes planes;
  Fp8Matrix(std::int64_t N, std::int64_t K, unsigned seed)
      : planes(quantise(Encoding::Fp8, {N, K}, N, [&](std::int64_t, std::int64_t, float* dst) {
          const std::vector<double> v = random_values(N * K, seed, 0.1);
          for (std::int64_t i = 0; i < N * K; ++i)  // rows of different sizes
            dst[i] = static_cast<float>(v[static_cast<std::size_t>(i)]) *
                     static_cast<float>(1 + i / K % 7);
        })) {}
  Weight weight(Backend& backend, DType dtype, bool multiplied = true) const {
    QuantisedFormat format = planes.format;
    format.multiplied = multiplied;
    return Weight("w", planes.upload(backend, &format), planes.shape, dtype);
  }
  double code(std::int64_t n, std::int64_t k) const {
    return double{
        e4m3_to_float(planes.view().data<std::uint8_t>(Plane::Codes)[n * planes.shape[1] + k])};
  }
  float scale(std::int64_t n) const { return planes.view().data<float>(Plane::Scales)[n]; }
  double at(std::int64_t n, std::int64_t k) const { return code(n, k) * double{scale(n)}; }
};

// x (T,K), each row divided by its scale, rounded to E4M3 and multiplied again. `scales` gets the
// rows' scales if not null.
std::vector<double> rounded_rows(const std::vector<double>& x, std::int64_t K,
                                 std::vector<double>* scales = nullptr) {
  std::vector<double> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(K)) {
    float most = 0;
    for (std::int64_t k = 0; k < K; ++k)
      most = std::max(most, std::abs(static_cast<float>(x[row + static_cast<std::size_t>(k)])));
    const float scale = e4m3_row_scale(most), inverse = most > 0 ? 448 / most : 1;
    if (scales) scales->push_back(double{scale});
    for (std::int64_t k = 0; k < K; ++k) {
      const std::size_t i = row + static_cast<std::size_t>(k);
      y[i] =
          double{e4m3_to_float(float_to_e4m3(static_cast<float>(x[i]) * inverse))} * double{scale};
    }
  }
  return y;
}

// x (T,K) wᵀ + start, and the sum of magnitudes of its terms.
struct Sums {
  std::vector<double> value, size;
};
template <class Element>  // (n, k) -> w's element
Sums product(const std::vector<double>& x, std::int64_t T, std::int64_t N, std::int64_t K,
             const Element& w, const std::vector<double>& start) {
  Sums s;
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t n = 0; n < N; ++n) {
      double sum = start[static_cast<std::size_t>(t * N + n)], size = std::abs(sum);
      for (std::int64_t k = 0; k < K; ++k) {
        const double term = x[static_cast<std::size_t>(t * K + k)] * w(n, k);
        sum += term, size += std::abs(term);
      }
      s.value.push_back(sum), s.size.push_back(size);
    }
  return s;
}
std::vector<double> times(std::vector<double> v, double factor) {
  for (double& x : v) x *= factor;
  return v;
}

// dy with column n multiplied by w's scale n, rounded to F32.
std::vector<double> with_scales(std::vector<double> dy, const Fp8Matrix& w, std::int64_t N) {
  for (std::size_t i = 0; i < dy.size(); ++i)
    dy[i] = double{static_cast<float>(dy[i]) * w.scale(static_cast<std::int64_t>(i) % N)};
  return dy;
}

// Kernels with one thing wrong.
struct Faulty final : Fp8Kernels {
  Fp8Kernels& right;
  std::string fault;
  Faulty(Fp8Kernels& right_in, std::string fault_in)
      : right(right_in), fault(std::move(fault_in)) {}
  bool in_hardware() const override { return true; }
  bool takes(DType) const override { return fault != "dtype"; }
  void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> c,
                     const Fp8Thin& beside) override {
    right.quantise_rows(to, x, c, beside);
  }
  void put(const Fp8Rows& to, const Fp8Rows& from) override { right.put(to, from); }
  void quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                       const Tensor& scales) override {
    right.quantise_factor(to, f, turned, scales);
  }
  void transpose(const Fp8Rows& to, const Tensor& codes) override {
    if (fault != "transpose") return right.transpose(to, codes);
    to.codes.backend().fill(to.scales, 1.0);
    codes.backend().upload(to.codes, codes.raw(), codes.bytes());
  }
  bool multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                const Tensor& addend) override {
    Fp8Rows left = a, right_rows = b;
    if (fault == "none" || (fault == "no addend" && addend)) return false;
    if (fault == "scales of rows") left.scales = repeat_first(a.scales);
    if (fault == "scales of columns") right_rows.scales = repeat_first(b.scales);
    if (fault == "adds") mode = GradMode::Write;
    if (fault == "addend") return right.multiply(y, mode, left, right_rows, {});
    return right.multiply(y, mode, left, right_rows, addend);
  }
  static Tensor repeat_first(const Tensor& scales) {
    Tensor all = scales.backend().empty(Tag::Workspace, DType::F32, scales.shape());
    scales.backend().fill(all, to_host_f64(scales)[0]);
    return all;
  }
};

ModelConfig sixteens() {  // both sides of every projection are multiples of 16
  ModelConfig c = tiny_config();
  c.hidden_size = 32, c.intermediate_size = 48, c.vocab_size = 64;
  return c;
}

// A step of a tiny model over an fp8 base: its loss and the gradients of its adapter.
std::vector<std::vector<double>> step(Backend& backend, DType dtype, bool products, bool joined,
                                      const std::string& recompute = "none", float dropout = 0,
                                      BasePrecision precision = BasePrecision::Fp8,
                                      bool with_b = true) {
  const std::vector<Row> rows = random_rows({80, 120, 31}, 5);
  const ModelConfig shape = sixteens();
  ModelWeights weights = random_weights(backend, shape, dtype, 7);
  quantise_weights(backend, shape, weights, {precision, {"layers.1.mlp.down_proj"}, products});
  Transformer model(backend, shape, std::move(weights), dtype, 256);
  LoraConfig config;
  config.shape = {4, 8, dropout};
  config.targets = {"all-linear"};
  Adapter adapter(model, config);
  if (joined) REQUIRE(join_projections(model, adapter));
  if (with_b) randomize_b(adapter, 3);
  model.set_recompute(parse_recompute(recompute));
  TokenBatch batch = make_batch(backend, pointers(rows));
  Tape tape(backend);
  Var loss = model.loss(tape, batch, 0.1, {true, 1, 0});
  tape.backward(loss);
  std::vector<std::vector<double>> all{to_host_f64(loss.value())};
  for (Parameter* p : adapter.parameters()) all.push_back(to_host_f64(p->grad()));
  return all;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    apart += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
  return std::sqrt(apart / size);
}

}  // namespace

TEST_CASE("a number is rounded to the nearest E4M3 code, ties to even") {
  for (unsigned code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_float(static_cast<std::uint8_t>(code)),
                high = e4m3_to_float(static_cast<std::uint8_t>(code + 1)),
                middle = (low + high) / 2;
    for (unsigned sign : {0u, 0x80u}) {
      const float s = sign ? -1 : 1;
      CHECK(float_to_e4m3(s * low) == (sign | code));
      CHECK(float_to_e4m3(s * std::nextafter(middle, 0.0f)) == (sign | code));
      CHECK(float_to_e4m3(s * middle) == (sign | (code + code % 2)));
      CHECK(float_to_e4m3(s * std::nextafter(middle, 1e9f)) == (sign | (code + 1)));
    }
  }
  for (float large : {448.0f, 449.0f, 1e30f, HUGE_VALF}) {
    CHECK(float_to_e4m3(large) == 0x7e);
    CHECK(float_to_e4m3(-large) == 0xfe);
  }
  CHECK(float_to_e4m3(NAN) == 0x7f);
}

TEST_CASE("a row of zeros has scale 1, and what is not finite stays so") {
  const std::int64_t K = 32;
  std::vector<double> x(static_cast<std::size_t>(6 * K));
  x[static_cast<std::size_t>(1 * K + 3)] = -7;
  x[static_cast<std::size_t>(2 * K + 5)] = NAN;
  x[static_cast<std::size_t>(3 * K)] = HUGE_VAL, x[static_cast<std::size_t>(3 * K + 1)] = 1;
  x[static_cast<std::size_t>(4 * K)] = 0x1p-101;
  x[static_cast<std::size_t>(5 * K)] = 0x1p-100;
  auto check = [&](Backend& backend, DType dtype) {
    const Fp8Rows rows{backend.empty(Tag::Workspace, DType::U8, {6, K}),
                       backend.empty(Tag::Workspace, DType::F32, {6})};
    backend.quantised_kernels()->fp8_kernels()->quantise_rows(
        rows, tensor_from(backend, dtype, {6, K}, x), {}, {});
    const std::vector<double> scales = to_host_f64(rows.scales);
    CHECK(scales[0] == 1);
    CHECK(scales[1] == double{7.0f / 448});
    CHECK(std::isnan(scales[2]));
    CHECK(std::isinf(scales[3]));
    CHECK(scales[4] == 1);
    CHECK(scales[5] == double{0x1p-100f / 448});
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(6 * K));
    backend.download(codes.data(), rows.codes, codes.size());
    CHECK(codes[0] == 0);
    CHECK(codes[static_cast<std::size_t>(1 * K + 3)] == 0xfe);
    CHECK(codes[static_cast<std::size_t>(2 * K)] == 0x7f);
    CHECK(codes[static_cast<std::size_t>(3 * K)] == 0x7f);  // 0 * inf
    CHECK(codes[static_cast<std::size_t>(4 * K)] == 0);
    CHECK(codes[static_cast<std::size_t>(5 * K)] == 0x7e);
  };
  check(oracle(), DType::F64);
  if (n_gpus() > 0 && gpu().quantised_kernels()->fp8_kernels()) check(gpu(), DType::BF16);
}

TEST_CASE("an FP8 product is the product of its rounded operands, both ways, F64") {
  const std::int64_t T = 131, K = 48, N = 80, cut = 32;
  const Fp8Matrix first(cut, K, 1), second(N - cut, K, 2);
  Backend& backend = oracle();
  const Weight w1 = first.weight(backend, DType::F64), w2 = second.weight(backend, DType::F64);
  const std::vector<double> x = rounded(random_values(T * K, 3, 2.0), DType::F32),
                            dy = rounded(random_values(T * N, 4, 1e-3), DType::F32),
                            start = random_values(T * N, 5), start_dx = random_values(T * K, 6);
  const std::vector<double> zero(static_cast<std::size_t>(T * N));
  auto w = [&](std::int64_t n, std::int64_t k) {
    return n < cut ? first.at(n, k) : second.at(n - cut, k);
  };
  const Fp8Product p(backend, {{0, cut, &w1}, {cut, N, &w2}}, T, DType::F64);
  REQUIRE(bool(p));
  const std::vector<double> seen = rounded_rows(x, K);
  for (int way : {0, 1, 2}) {  // written, added, onto an addend
    Tensor y = tensor_from(backend, DType::F64, {T, N}, start);
    const Tensor addend = way == 2 ? tensor_from(backend, DType::F64, {T, N}, start) : Tensor();
    p.forward(y, way == 1 ? GradMode::Add : GradMode::Write,
              tensor_from(backend, DType::F64, {T, K}, x), addend);
    const Sums want = product(seen, T, N, K, w, way == 0 ? zero : start);
    check_close(to_host_f64(y), want.value, 0, times(want.size, 1e-13), "y");
  }
  // The columns of dy are multiplied by the rows' scales first.
  std::vector<double> scaled = dy;
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t n = 0; n < N; ++n) {
      double& v = scaled[static_cast<std::size_t>(t * N + n)];
      v = double{static_cast<float>(v) * (n < cut ? first.scale(n) : second.scale(n - cut))};
    }
  const std::vector<double> seen_dy = rounded_rows(scaled, N);
  auto turned = [&](std::int64_t k, std::int64_t n) {
    return n < cut ? first.code(n, k) : second.code(n - cut, k);
  };
  for (GradMode mode : kModes) {
    Tensor dx = tensor_from(backend, DType::F64, {T, K}, start_dx);
    p.backward_x(dx, mode, tensor_from(backend, DType::F64, {T, N}, dy));
    const Sums want =
        product(seen_dy, T, K, N, turned,
                mode == GradMode::Add ? start_dx : std::vector<double>(start_dx.size()));
    check_close(to_host_f64(dx), want.value, 0, times(want.size, 1e-13), "dx");
  }
}

TEST_CASE("a low-rank term beside an FP8 product is as precise as bfloat16, of any size") {
  const std::int64_t T = 130, K = 64, N = 96, R = 24, cut = 32;
  const Fp8Matrix first(cut, K, 1), second(N - cut, K, 2);
  Backend& backend = oracle();
  const Weight w1 = first.weight(backend, DType::F64), w2 = second.weight(backend, DType::F64);
  const Fp8Product p(backend, {{0, cut, &w1}, {cut, N, &w2}}, T, DType::F64);
  REQUIRE(bool(p));
  const Tensor x = random_tensor(backend, DType::F64, {T, K}, 3, 2.0),
               dy = random_tensor(backend, DType::F64, {T, N}, 4, 1e-3);
  auto zeros = [&](std::int64_t cols) {
    return tensor_from(backend, DType::F64, {T, cols},
                       std::vector<double>(static_cast<std::size_t>(T * cols)));
  };
  // Large beside small numbers, and terms far larger and far smaller than the product itself.
  for (double s_size : {1e-6, 1.0, 1e4})
    for (double f_size : {1e-9, 1e-2, 1e3}) {
      CAPTURE(s_size);
      CAPTURE(f_size);
      auto sized = [](std::int64_t n, unsigned seed, double size) {
        std::vector<double> v = rounded(random_values(n, seed, size), DType::F32);
        for (std::size_t i = 0; i < v.size(); i += 5) v[i] /= 64;
        return v;
      };
      auto term = [&](bool forward) {
        const std::int64_t length = forward ? N : K;
        const std::vector<double> s = sized(T * R, 5, s_size), f = sized(length * R, 6, f_size);
        // dx's factor is (R,K)
        auto at = [&](std::int64_t n, std::int64_t r) {
          return f[static_cast<std::size_t>(forward ? n * R + r : r * length + n)];
        };
        const Fp8LowRank low{
            tensor_from(backend, DType::F64, {T, R}, s),
            tensor_from(backend, DType::F64, forward ? Shape{N, R} : Shape{R, K}, f)};
        // What the term adds to a product of zeros, whose rows' scales are the term's own.
        Tensor got = zeros(length);
        forward ? p.forward(got, GradMode::Write, zeros(K), {}, low)
                : p.backward_x(got, GradMode::Write, zeros(N), low);
        // A number is off by 2^-8 of itself, or by 2^-10 where codes end: 2^-14 of F's largest, 2^-18
        // of a row's largest S. The scales of rows of w differ by 7 at most, those of columns not.
        const Sums want =
            product(s, T, length, R, at, std::vector<double>(static_cast<std::size_t>(T * length)));
        const double floor =
            7 * (0x1p-14 + 0x1p-18) * 25 * s_size * f_size * static_cast<double>(R);
        check_close(to_host_f64(got), want.value, floor, times(want.size, 3 * 0x1p-8), "term");
        // Beside numbers of x and dy its codes may end sooner, but not by more than theirs are off.
        Tensor alone = zeros(length), with = zeros(length);
        forward ? p.forward(alone, GradMode::Write, x) : p.backward_x(alone, GradMode::Write, dy);
        forward ? p.forward(with, GradMode::Write, x, {}, low)
                : p.backward_x(with, GradMode::Write, dy, low);
        std::vector<double> sum = want.value;
        const std::vector<double> product_alone = to_host_f64(alone);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += product_alone[i];
        CHECK(distance(to_host_f64(with), sum) < 0x1p-4);
      };
      term(true);
      term(false);
    }
}

TEST_CASE("a factor that is not finite makes its product a NaN") {
  const std::int64_t T = 128, K = 32, N = 16, R = 8;
  const Fp8Matrix m(N, K, 1);
  auto check = [&](Backend& backend, DType dtype) {
    const Weight w = m.weight(backend, dtype);
    for (double bad : {HUGE_VAL, -HUGE_VAL, double{NAN}}) {
      std::vector<double> f = random_values(N * R, 2);
      f[11] = bad;
      Tensor y = backend.empty(Tag::Workspace, dtype, {T, N});
      Fp8Product(backend, w, T, dtype)
          .forward(
              y, GradMode::Write, random_tensor(backend, dtype, {T, K}, 3), {},
              {random_tensor(backend, dtype, {T, R}, 4), tensor_from(backend, dtype, {N, R}, f)});
      CHECK(std::isnan(to_host_f64(y)[11 / R]));
    }
  };
  check(oracle(), DType::F64);
  if (n_gpus() > 0 && gpu().quantised_kernels()->fp8_kernels()) check(gpu(), DType::BF16);
}

TEST_CASE("rounding activations moves an FP8 product by what its rows' scales say, and no more") {
  const std::int64_t T = 128, K = 64, N = 32;
  const Fp8Matrix m(N, K, 1);
  Backend& backend = oracle();
  const Weight w = m.weight(backend, DType::F64);
  const std::vector<double> x = rounded(random_values(T * K, 3, 2.0), DType::F32),
                            zero(static_cast<std::size_t>(T * N));
  Tensor y = backend.empty(Tag::Workspace, DType::F64, {T, N});
  backend.linear_forward(y, tensor_from(backend, DType::F64, {T, K}, x), w);
  std::vector<double> scales, error(x.size());
  rounded_rows(x, K, &scales);
  for (std::size_t i = 0; i < x.size(); ++i)
    error[i] =
        std::max(0x1p-4 * std::abs(x[i]), 0x1p-10 * scales[i / static_cast<std::size_t>(K)]) *
        (1 + 0x1p-20);
  const Sums exact = product(
      x, T, N, K, [&](auto n, auto k) { return m.at(n, k); }, zero);
  const Sums bound = product(
      error, T, N, K, [&](auto n, auto k) { return std::abs(m.at(n, k)); }, zero);
  const std::vector<double> got = to_host_f64(y);
  check_close(got, exact.value, 0, bound.value, "y");
  CHECK(got != exact.value);
}

TEST_CASE("few rows, weights that do not say so and odd sides go through dense scratch") {
  Backend& backend = oracle();
  const Fp8Matrix m(32, 48, 1), odd(24, 48, 1);
  const Weight w = m.weight(backend, DType::F32), plain = m.weight(backend, DType::F32, false);
  const std::int64_t T = Fp8Product::kFewestRows;
  CHECK(bool(Fp8Product(backend, w, T, DType::F32)));
  CHECK_FALSE(bool(Fp8Product(backend, w, T - 1, DType::F32)));
  CHECK_FALSE(bool(Fp8Product(backend, plain, T, DType::F32)));
  CHECK_FALSE(bool(Fp8Product(backend, {{0, 32, &w}, {32, 64, &plain}}, T, DType::F32)));
  CHECK(fp8_products_serve(m.planes.format, {32, 48}));
  CHECK_FALSE(fp8_products_serve(odd.planes.format, {24, 48}));
  CHECK_FALSE(fp8_products_serve({Encoding::Fp8, nullptr, 16, 16}, {32, 48}));
  CHECK_FALSE(fp8_products_serve({Encoding::Nf4, nullptr, 64}, {32, 64}));
  const Tensor x = random_tensor(backend, DType::F32, {T - 1, 48}, 2);
  Tensor y = backend.empty(Tag::Workspace, DType::F32, {T - 1, 32}),
         want = backend.empty(Tag::Workspace, DType::F32, {T - 1, 32});
  backend.linear_forward(y, x, w), backend.linear_forward(want, x, plain);
  CHECK(to_host_f64(y) == to_host_f64(want));
}

TEST_CASE("a matrix with one scale is held with that scale for each row") {
  const std::int64_t N = 32, K = 48;
  HostPlanes planes({Encoding::Fp8, nullptr, K, N}, {N, K});
  for (std::int64_t i = 0; i < N * K; ++i)
    planes.data<std::uint8_t>(Plane::Codes)[i] = static_cast<std::uint8_t>(i % 120);
  planes.data<float>(Plane::Scales)[0] = 0.37f;
  QuantisedFormat held = planes.format;
  held.scale_rows = 1, held.multiplied = true;
  Backend& backend = oracle();
  const Weight one("w", planes.upload(backend), {N, K}, DType::F32),
      all("w", planes.upload(backend, &held), {N, K}, DType::F32);
  CHECK((*all.quantised())[Plane::Scales].numel() == N);
  Tensor a = backend.empty(Tag::Workspace, DType::F32, {N, K}),
         b = backend.empty(Tag::Workspace, DType::F32, {N, K});
  backend.quantised_kernels()->dequantise(a, one);
  backend.quantised_kernels()->dequantise(b, all);
  CHECK(to_host_f64(a) == to_host_f64(b));
}

TEST_CASE("the proof of FP8 products sees each thing that could be wrong, and says which") {
  auto backend = make_cpu_backend(CpuMode::Fast);
  Fp8Kernels& right = *backend->quantised_kernels()->fp8_kernels();
  CHECK(probe_fp8(*backend, right) == "");
  auto fault = [&](const char* what) {
    Faulty faulty(right, what);
    return probe_fp8(*backend, faulty);
  };
  const std::string none = "its library has no product of FP8 with a scale for each row";
  CHECK(fault("dtype") == none);
  CHECK(fault("none") == none);
  CHECK(fault("no addend") == none);
  CHECK(fault("scales of rows").starts_with("its product of FP8 (written) is wrong: "));
  CHECK(fault("scales of columns").starts_with("its product of FP8 (written) is wrong: "));
  CHECK(fault("adds").starts_with("its product of FP8 (added) is wrong: "));
  CHECK(fault("addend").starts_with("its product of FP8 (onto an addend) is wrong: "));
  CHECK(fault("transpose").starts_with("its product of FP8 (of transposed codes) is wrong: "));
}

TEST_CASE(
    "a step over FP8 products: joined as not, recomputed as not, near one over dense scratch") {
  Backend& backend = oracle();
  const auto dense = step(backend, DType::F64, false, false),
             plain = step(backend, DType::F64, true, false),
             joined = step(backend, DType::F64, true, true);
  // Forward, the same rows are rounded to the same codes, but where the last bit of an F64 decides.
  // With B, a joined projection's term is of pairs of codes, and what those leave out turns a later
  // activation's code over now and then.
  const BasePrecision fp8 = BasePrecision::Fp8;
  const double without_b = step(backend, DType::F64, true, false, "none", 0, fp8, false)[0][0],
               joined_without = step(backend, DType::F64, true, true, "none", 0, fp8, false)[0][0];
  CHECK(without_b == doctest::Approx(joined_without).epsilon(1e-6));
  CHECK(plain[0] != joined[0]);
  CHECK(std::abs(joined[0][0] - dense[0][0]) < 0.01 * dense[0][0]);
  CHECK(plain[0] != dense[0]);
  CHECK(std::abs(plain[0][0] - dense[0][0]) < 0.01 * dense[0][0]);
  // An E4M3 number is off by 1/16 at most, 1/28 in the mean square where all sizes are as likely; dx
  // of a few layers adds up a few of these.
  for (std::size_t i = 1; i < dense.size(); ++i) {
    CHECK(distance(plain[i], dense[i]) < 0.25);
    CHECK(distance(joined[i], dense[i]) < 0.25);
  }
  CHECK(step(backend, DType::F64, true, true, "block") == joined);
  CHECK(step(backend, DType::F64, true, true, "gate-up") == joined);
  CHECK(step(backend, DType::F64, true, false, "block") == plain);
  const auto dropped = step(backend, DType::F64, true, true, "none", 0.25f),
             dense_dropped = step(backend, DType::F64, false, true, "none", 0.25f);
  for (std::size_t i = 1; i < dropped.size(); ++i)
    CHECK(distance(dropped[i], dense_dropped[i]) < 0.25);
}

TEST_CASE("FP8 products are used by themselves where hardware has them and the model is wide") {
  auto plan = open_plan_device("cuda");
  ModelConfig narrow = sixteens(), wide = sixteens();
  wide.hidden_size = kFp8Width;
  CHECK(uses_fp8_products("auto", wide, *plan, DType::BF16));
  CHECK_FALSE(uses_fp8_products("off", wide, *plan, DType::BF16));
  CHECK_FALSE(uses_fp8_products("auto", wide, *plan, DType::F32));
  CHECK_FALSE(uses_fp8_products("auto", narrow, *plan, DType::BF16));
  CHECK(uses_fp8_products("on", narrow, *plan, DType::BF16));
  CHECK_FALSE(uses_fp8_products("auto", wide, oracle(), DType::F32));
  CHECK(uses_fp8_products("on", wide, oracle(), DType::F32));
  CHECK_THROWS_WITH_AS(uses_fp8_products("on", wide, *plan, DType::F32),
                       "`fp8_products` on: plan: it has no products of FP8 in f32", UsageError);
  CHECK_THROWS_WITH_AS(uses_fp8_products("yes", wide, *plan, DType::BF16),
                       doctest::Contains("one of auto, on, off"), UsageError);
}

TEST_CASE("the head is quantised by choice, and then multiplied in FP8 forward") {
  ModelConfig shape = sixteens();
  auto n_fp8 = [&](BasePrecision precision) {
    const std::vector<HeldFormat> formats = held_formats(shape, {precision, {}, true});
    return std::count_if(formats.begin(), formats.end(),
                         [](const HeldFormat& f) { return f && f->multiplied; });
  };
  CHECK(n_fp8(BasePrecision::Fp8) == 14);
  CHECK(n_fp8(BasePrecision::Fp8Head) == 15);
  CHECK(parse_base_precision("fp8-head") == BasePrecision::Fp8Head);
  Backend& backend = oracle();
  const auto plain = step(backend, DType::F64, true, true),
             head = step(backend, DType::F64, true, true, "none", 0, BasePrecision::Fp8Head);
  CHECK(head[0] != plain[0]);
  CHECK(std::abs(head[0][0] - plain[0][0]) < 0.01 * plain[0][0]);
  for (std::size_t i = 1; i < plain.size(); ++i) CHECK(distance(head[i], plain[i]) < 0.25);
  shape.tie_embeddings = true;
  CHECK_THROWS_WITH_AS(n_fp8(BasePrecision::Fp8Head), doctest::Contains("table of embeddings"),
                       UsageError);
}

#define LK_NEEDS_FP8() \
  LK_NEEDS_GPU();      \
  if (!gpu().quantised_kernels()->fp8_kernels()) LK_SKIP(gpu().quantised_kernels()->why_no_fp8())

TEST_CASE("cuda: rows are rounded to E4M3 as on the CPU, bit for bit") {
  LK_NEEDS_FP8();
  for (auto [T, K] : {std::pair<std::int64_t, std::int64_t>{1, 16},
                      {3, 576},
                      {5, 2048},
                      {2, 4112},
                      {3, 6144},
                      {2, 8208},
                      {7, 11008},
                      {2, 16384},
                      {3, 22016},
                      {2, 28672}})
    for (Layout layout : {kContiguous, kStrided})
      for (int parts : {0, 1, 3}) {
        auto codes = [&](Backend& backend, DType dtype, Layout in) {
          std::vector<double> values = rounded(random_values(T * K, 3, 5.0), DType::BF16);
          for (std::size_t i = 0; i < values.size(); i += 3)  // of many sizes
            values[i] = round_to(DType::BF16, std::ldexp(values[i], -static_cast<int>(i % 23)));
          const Guarded x(backend, dtype, T, K, in, values);
          const std::vector<double> scales = rounded(random_values(K, 4, 0.01), DType::F32);
          std::vector<Tensor> columns;
          for (int p = 0; p < parts; ++p) {
            const std::int64_t first = K / 16 * p / parts * 16,
                               last = K / 16 * (p + 1) / parts * 16;
            if (last > first)
              columns.push_back(tensor_from(backend, DType::F32, {last - first},
                                            {scales.begin() + first, scales.begin() + last}));
          }
          const Fp8Rows to{backend.empty(Tag::Workspace, DType::U8, {T, K}),
                           backend.empty(Tag::Workspace, DType::F32, {T})};
          backend.quantised_kernels()->fp8_kernels()->quantise_rows(to, x.matrix(), columns, {});
          std::vector<std::uint8_t> bytes(static_cast<std::size_t>(T * K));
          backend.download(bytes.data(), to.codes, bytes.size());
          return std::pair(bytes, to_host_f64(to.scales));
        };
        CHECK_MESSAGE(codes(gpu(), DType::BF16, layout) == codes(oracle(), DType::F64, kContiguous),
                      T, " rows of ", K, ", ", parts, " parts");
      }
}

TEST_CASE("cuda: pairs of codes are the CPU's, bit for bit, and zeros behind them") {
  LK_NEEDS_FP8();
  for (auto [T, K, S, width] : {std::array<std::int64_t, 4>{1, 16, 8, 112},
                                {131, 576, 24, 80},
                                {40, 2048, 48, 256},
                                {3, 12304, 96, 304},
                                {2, 28672, 2064, 6272}})
    for (bool turned : {false, true}) {
      auto codes = [&](Backend& backend, DType dtype) {
        Fp8Kernels& kernels = *backend.quantised_kernels()->fp8_kernels();
        const Side side{backend, dtype, DType::BF16, kStrided};
        const std::int64_t R = K;  // rows of the factor
        std::vector<double> f = rounded(random_values(R * S, 5, 1e-3), DType::BF16);
        for (std::size_t i = 0; i < f.size(); i += 3)
          f[i] = round_to(DType::BF16, std::ldexp(f[i], -static_cast<int>(i % 19)));
        const std::vector<double> sizes = rounded(random_values(R, 4, 0.01), DType::F32);
        std::vector<double> scales;
        for (double v : sizes) scales.push_back(round_to(DType::F32, std::abs(v) + 1e-4));
        const Fp8Thin factor{tensor_from(backend, dtype, turned ? Shape{S, R} : Shape{R, S}, f),
                             backend.empty(Tag::Workspace, DType::F32, {Fp8Thin::kBounds})};
        const Tensor wide = backend.empty(Tag::Workspace, DType::U8, {R, 16 + width});
        std::vector<std::uint8_t> bytes(wide.bytes(), 77);
        backend.upload(wide, bytes.data(), bytes.size());
        kernels.quantise_factor(wide.slice_cols(16, 16 + width), factor, turned,
                                tensor_from(backend, DType::F32, {R}, scales));
        const Fp8Rows rows{backend.empty(Tag::Workspace, DType::U8, {T, K + width}),
                           backend.empty(Tag::Workspace, DType::F32, {T})};
        kernels.quantise_rows(rows, numbers(side, T, K, 6), {},
                              {numbers(side, T, S, 7, 30), factor.bounds});
        std::vector<std::uint8_t> more(rows.codes.bytes());
        backend.download(bytes.data(), wide, bytes.size());
        backend.download(more.data(), rows.codes, more.size());
        bytes.insert(bytes.end(), more.begin(), more.end());
        return std::pair(bytes, to_host_f64(rows.scales));
      };
      const auto have = codes(gpu(), DType::BF16), want = codes(oracle(), DType::F64);
      CHECK_MESSAGE(have == want, T, " rows of ", K, " beside ", S, turned ? ", turned" : "");
    }
}

namespace {

std::vector<std::uint8_t> some_codes(std::int64_t n) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 37 >> 3);
  return codes;
}

// Calls place(middle), the columns [16, cols + 16) of a matrix (rows, cols + 32) of 77s. Returns how
// many of its elements are not code(row, col) there and 77 around it afterwards.
template <class Place, class Code>
std::int64_t misplaced(Backend& backend, std::int64_t rows, std::int64_t cols, const Place& place,
                       const Code& code) {
  const Tensor whole = backend.empty(Tag::Workspace, DType::U8, {rows, cols + 32});
  std::vector<std::uint8_t> all(whole.bytes(), 77);
  backend.upload(whole, all.data(), all.size());
  place(whole.slice_cols(16, cols + 16));
  backend.download(all.data(), whole, all.size());
  std::int64_t wrong = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = -16; c < cols + 16; ++c) {
      const int want = c < 0 || c >= cols ? 77 : code(r, c);
      wrong += all[static_cast<std::size_t>(r * (cols + 32) + c + 16)] != want;
    }
  return wrong;
}

}  // namespace

TEST_CASE("codes are put into their place and nowhere else") {
  auto check = [](Backend& backend) {
    for (auto [N, K] : {std::pair<std::int64_t, std::int64_t>{16, 16}, {130, 272}, {33, 4096}}) {
      const std::vector<std::uint8_t> codes = some_codes(N * K);
      const Tensor from = backend.empty(Tag::Workspace, DType::U8, {N, K}),
                   scales = random_tensor(backend, DType::F32, {N}, 1),
                   to_scales = backend.empty(Tag::Workspace, DType::F32, {N});
      backend.upload(from, codes.data(), codes.size());
      const std::int64_t wrong = misplaced(
          backend, N, K,
          [&](const Tensor& to) {
            backend.quantised_kernels()->fp8_kernels()->put({to, to_scales}, {from, scales});
          },
          [&, K = K](auto n, auto k) { return codes[static_cast<std::size_t>(n * K + k)]; });
      CHECK_MESSAGE(wrong == 0, N, " x ", K);
      CHECK(to_host_f64(to_scales) == to_host_f64(scales));
    }
  };
  check(oracle());
  if (n_gpus() > 0 && gpu().quantised_kernels()->fp8_kernels()) check(gpu());
}

TEST_CASE("codes are transposed into their place and nowhere else") {
  auto check = [](Backend& backend) {
    for (auto [N, K] : {std::pair<std::int64_t, std::int64_t>{16, 16},
                        {128, 128},
                        {144, 272},
                        {576, 192},
                        {1040, 400}}) {
      const std::vector<std::uint8_t> codes = some_codes(N * K);
      const Tensor from = backend.empty(Tag::Workspace, DType::U8, {N, K}),
                   scales = backend.empty(Tag::Workspace, DType::F32, {K});
      backend.upload(from, codes.data(), codes.size());
      const std::int64_t wrong = misplaced(
          backend, K, N,
          [&](const Tensor& to) {
            backend.quantised_kernels()->fp8_kernels()->transpose({to, scales}, from);
          },
          [&, K = K](auto k, auto n) { return codes[static_cast<std::size_t>(n * K + k)]; });
      CHECK_MESSAGE(wrong == 0, N, " x ", K);
      CHECK(to_host_f64(scales) == std::vector<double>(static_cast<std::size_t>(K), 1.0));
    }
  };
  check(oracle());
  if (n_gpus() > 0 && gpu().quantised_kernels()->fp8_kernels()) check(gpu());
}

// Tensor cores keep at least 13 bits of the largest magnitude at each of a sum's K / 32 steps; BF16
// rounds the sum and, where something is added, the result.
TEST_CASE("cuda: FP8 products are the CPU's, both ways, of any number of rows") {
  LK_NEEDS_FP8();
  for (auto [T, N, K] : {std::array<std::int64_t, 3>{128, 16, 16},
                         {131, 48, 64},
                         {200, 576, 192},
                         {257, 192, 1536},
                         {1000, 320, 576}})
    for (GradMode mode : kModes) {
      const Fp8Matrix m(N, K, 1);
      const Case run = [&](const Side& s) {
        const Weight w = m.weight(s.backend, s.dtype);
        const Fp8Product p(s.backend, w, T, s.dtype);
        REQUIRE(bool(p));
        Guarded y = numbers(s, T, N, 2), dx = numbers(s, T, K, 3, 1e-3);
        p.forward(y, mode, numbers(s, T, K, 4), {});
        p.backward_x(dx, mode, numbers(s, T, N, 5, 1e-3));
        return std::vector<Guarded>{y, dx};
      };
      for (Layout layout : {kContiguous, kStrided}) {
        const std::string what = label("fp8", DType::BF16, T, N, layout);
        const Results r = compare(what, DType::BF16, layout, run);
        const std::vector<double> x = rounded(random_values(T * K, 4), DType::BF16),
                                  dy = rounded(random_values(T * N, 5, 1e-3), DType::BF16);
        const Sums y = product(
            rounded_rows(x, K), T, N, K, [&](auto n, auto k) { return m.at(n, k); },
            rounded(random_values(T * N, 2), DType::BF16));
        const Sums dx = product(
            rounded_rows(with_scales(dy, m, N), N), T, K, N,
            [&](auto k, auto n) { return m.code(n, k); },
            rounded(random_values(T * K, 3, 1e-3), DType::BF16));
        auto slack = [](std::vector<double> size, std::int64_t length) {
          return times(std::move(size), static_cast<double>((length + 31) / 32) * 0x1p-13 + 0x1p-8);
        };
        check_close(r.got[0], r.want[0], 0x1p-8, slack(y.size, K), what + " y");
        check_close(r.got[1], r.want[1], 0x1p-8, slack(dx.size, N), what + " dx");
      }
    }
}

// As above. Its terms are products of codes too.
TEST_CASE(
    "cuda: FP8 products with a low-rank term are the CPU's, written, added and onto an addend") {
  LK_NEEDS_FP8();
  for (auto [T, N, K, R] : {std::array<std::int64_t, 4>{128, 16, 16, 8},
                            {131, 96, 64, 24},
                            {200, 576, 192, 48},
                            {257, 192, 1536, 16}})
    for (int way : {0, 1, 2}) {
      const std::int64_t cut = N / 32 * 16;
      const Fp8Matrix first(std::max<std::int64_t>(cut, 16), K, 1),
          second(std::max<std::int64_t>(N - cut, 16), K, 2);
      const Case run = [&](const Side& s) {
        const Weight w1 = first.weight(s.backend, s.dtype), w2 = second.weight(s.backend, s.dtype);
        std::vector<Fp8Part> parts{{cut, N, &w2}};
        if (cut > 0) parts.insert(parts.begin(), {0, cut, &w1});
        const Fp8Product p(s.backend, std::move(parts), T, s.dtype);
        REQUIRE(bool(p));
        Guarded y = numbers(s, T, N, 2), dx = numbers(s, T, K, 3, 1e-3);
        const GradMode mode = way == 1 ? GradMode::Add : GradMode::Write;
        Side plain = s;
        plain.layout = kContiguous;
        p.forward(y, mode, numbers(s, T, K, 4), way == 2 ? numbers(s, T, N, 8).matrix() : Tensor(),
                  {numbers(s, T, R, 6), numbers(plain, N, R, 7, 0.01)});
        p.backward_x(dx, mode, numbers(s, T, N, 5, 1e-3),
                     {numbers(s, T, R, 9, 1e-4), numbers(plain, R, K, 10, 0.03)});
        return std::vector<Guarded>{y, dx};
      };
      for (Layout layout : {kContiguous, kStrided}) {
        const std::string what = label("fp8 with pairs", DType::BF16, T, N, layout);
        const Results r = compare(what, DType::BF16, layout, run);
        // Sizes of terms: of normal numbers, for a bound of the sums' rounding.
        const double steps_y = static_cast<double>((K + 3 * R + 127) / 32),
                     steps_dx = static_cast<double>((N + 3 * R + 127) / 32);
        std::vector<double> slack_y, slack_dx;
        auto magnitude = [](const std::vector<double>& v) {
          double most = 0;
          for (double x : v) most = std::max(most, std::abs(x));
          return most;
        };
        slack_y.assign(r.want[0].size(), 4 * magnitude(r.want[0]) * (steps_y * 0x1p-13 + 0x1p-8));
        slack_dx.assign(r.want[1].size(), 4 * magnitude(r.want[1]) * (steps_dx * 0x1p-13 + 0x1p-8));
        check_close(r.got[0], r.want[0], 0x1p-8, slack_y, what + " y");
        check_close(r.got[1], r.want[1], 0x1p-8, slack_dx, what + " dx");
      }
    }
}

TEST_CASE(
    "cuda: a step over FP8 products has the CPU's loss and gradients, and its own bits again") {
  LK_NEEDS_FP8();
  for (bool joined : {false, true}) {
    const auto want = step(oracle(), DType::F64, true, joined),
               have = step(gpu(), DType::BF16, true, joined);
    CHECK(have == step(gpu(), DType::BF16, true, joined));
    CHECK(have == step(gpu(), DType::BF16, true, joined, "block"));
    CHECK(have[0][0] == doctest::Approx(want[0][0]).epsilon(0.01));
    for (std::size_t i = 1; i < want.size(); ++i) CHECK(distance(have[i], want[i]) < 0.25);
  }
}
