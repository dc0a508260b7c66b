#include "04_rslora.h"

#include <doctest/doctest.h>

#include <cstdio>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "lora/lora_linear.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

struct Layer {
  std::unique_ptr<Backend> cpu = make_cpu_backend(CpuMode::Reference);
  std::int64_t T = 48, K = 25, N = 40, R;
  Weight w{"w", random_tensor(*cpu, DType::F64, {N, K}, 1)};
  Parameter a, b;
  Tensor x = random_tensor(*cpu, DType::F64, {T, K}, 4);

  explicit Layer(std::int64_t rank) : R(rank), a(random({R, K}, 2)), b(random({N, R}, 3)) {}
  Parameter random(Shape shape, unsigned seed) {
    const std::vector<double> values = random_values(shape.numel(), seed);
    return {seed == 2 ? "A" : "B", tensor_from(*cpu, DType::F64, shape, values, Tag::Params),
            DType::F64};
  }
  std::vector<double> run(const std::function<Var(Tape&)>& f) {
    Tape tape(*cpu, Tape::Mode::NoGrad);
    return to_host_f64(f(tape).value());
  }
  // The root of the mean square of y - x Wᵀ.
  double size_of_update(bool rank_stabilised) {
    auto y = run([&](Tape& t) { return exercise::lora(t, Var(x), w, a, b, 1.0, rank_stabilised); });
    auto base = run([&](Tape& t) { return linear(t, Var(x), w); });
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += (y[i] - base[i]) * (y[i] - base[i]);
    return std::sqrt(sum / static_cast<double>(y.size()));
  }
};

}  // namespace

TEST_CASE("4: the layer is the library's, in both scales") {
  for (bool stabilised : {false, true}) {
    CAPTURE(stabilised);
    Layer m(4);
    const LoraShape shape{.rank = 4, .alpha = 6, .rslora = stabilised};
    auto mine =
        m.run([&](Tape& t) { return exercise::lora(t, Var(m.x), m.w, m.a, m.b, 6, stabilised); });
    auto ours = m.run([&](Tape& t) {
      return lora_linear(t, Var(m.x), m.w, nullptr, m.a, m.b, shape.scale(), 0, {});
    });
    double largest = 0;
    for (std::size_t i = 0; i < mine.size(); ++i)
      largest = std::max(largest, std::abs(mine[i] - ours[i]));
    CHECK(largest < 1e-12);
  }
}

TEST_CASE("4: its gradients are right, A's and B's too") {
  Layer m(3);
  const GradcheckResult r = gradcheck(*m.cpu,
                                      [&](Tape& t, const std::vector<Var>& in) {
                                        return exercise::lora(t, in[0], m.w, m.a, m.b, 6, true);
                                      },
                                      {m.x}, {&m.a, &m.b});
  CHECK_MESSAGE(r.ok, r.message);
}

TEST_CASE("4: as the rank grows, alpha / R shrinks the update and alpha / sqrt(R) does not") {
  for (std::int64_t rank : {1, 4, 16, 64, 256}) {
    Layer m(rank);
    const double plain = m.size_of_update(false), stable = m.size_of_update(true);
    std::printf("rank %3d: the update is %.2f with alpha / R, %.2f with alpha / sqrt(R)\n",
                static_cast<int>(rank), plain, stable);
    // x Aᵀ sums K terms of variance 1, its product with Bᵀ sums R of these.
    const double one = std::sqrt(static_cast<double>(m.K)),
                 root = std::sqrt(static_cast<double>(rank));
    CHECK(plain == doctest::Approx(one / root).epsilon(0.3));
    CHECK(stable == doctest::Approx(one).epsilon(0.3));
  }
}
