// AdamW: would catch a wrong bias correction, decay or clip, moments of the wrong size, a stale
// gradient taken for a new one.
#include "nn/adamw.h"

#include <limits>

#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Fixture {
  std::unique_ptr<Backend> owner = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *owner;
  Parameter a{"a", random_tensor(backend, DType::F64, {3, 5}, 1), DType::F64};
  Parameter b{"b", random_tensor(backend, DType::F64, {2, 3}, 2), DType::F64};

  std::vector<double> give_gradient(Parameter& p, unsigned seed, double scale = 1.0) {
    p.zero_grad();
    const std::vector<double> g = random_values(p.numel(), seed, scale);
    backend.copy(p.sink().tensor, tensor_from(backend, DType::F64, p.shape(), g));
    return g;
  }
};

// The definition, written out for one element.
struct Element {
  double p, m = 0, v = 0;
  void step(double g, double lr, const AdamWConfig& c, int t) {
    const double b1 = c.beta1, b2 = c.beta2;
    p -= lr * static_cast<double>(c.weight_decay) * p;
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    p -= lr * (m / (1 - std::pow(b1, t))) /
         (std::sqrt(v / (1 - std::pow(b2, t))) + static_cast<double>(c.eps));
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "steps follow the definition, with decay and clipping over all") {
  AdamWConfig config;
  config.weight_decay = 0.1f;
  config.beta2 = 0.99f;
  AdamW adamw({&a, &b}, config);
  std::vector<Element> want;
  for (const Parameter* p : {&a, &b})
    for (double x : to_host_f64(p->value())) want.push_back({x});
  const float max_norm = 2.0f;
  for (int t = 1; t <= 6; ++t) {
    std::vector<double> g = give_gradient(a, 10 + static_cast<unsigned>(t), t == 3 ? 0.01 : 1.0);
    for (double x : give_gradient(b, 20 + static_cast<unsigned>(t), t == 3 ? 0.01 : 1.0))
      g.push_back(x);
    double sum = 0;
    for (double x : g) sum += x * x;
    Tensor norm_sq = adamw.grad_norm_sq();
    CHECK(to_host_f64(norm_sq)[0] == doctest::Approx(sum).epsilon(1e-14));
    const float lr = 0.01f * static_cast<float>(t);
    adamw.step(lr, max_norm, norm_sq);
    const double clip = std::min(1.0, static_cast<double>(max_norm) / (std::sqrt(sum) + 1e-6));
    CHECK((clip < 1) == (t != 3));  // both sides of the clip are met
    for (std::size_t i = 0; i < g.size(); ++i) want[i].step(g[i] * clip, lr, config, t);
  }
  std::vector<double> got = to_host_f64(a.value());
  for (double x : to_host_f64(b.value())) got.push_back(x);
  for (std::size_t i = 0; i < got.size(); ++i)
    CHECK(got[i] == doctest::Approx(want[i].p).epsilon(1e-12));
  CHECK(adamw.steps_done() == 6);
  CHECK(to_host_f64(adamw.moment_m(0))[0] == doctest::Approx(want[0].m).epsilon(1e-12));
  CHECK(to_host_f64(adamw.moment_v(1))[5] == doctest::Approx(want[20].v).epsilon(1e-12));
}

TEST_CASE_FIXTURE(Fixture,
                  "the first step moves every element by the rate, whatever its gradient") {
  AdamW adamw({&a}, {});
  const std::vector<double> before = to_host_f64(a.value()), g = give_gradient(a, 3, 1e-3);
  adamw.step(0.5f, 0, adamw.grad_norm_sq());
  const std::vector<double> after = to_host_f64(a.value());
  for (std::size_t i = 0; i < g.size(); ++i)
    CHECK(before[i] - after[i] == doctest::Approx(g[i] > 0 ? 0.5 : -0.5).epsilon(0.01));
}

TEST_CASE_FIXTURE(Fixture, "state: two moments per parameter, allocated as Optimizer, zero") {
  CHECK(backend.ledger()[Tag::Optimizer].total_count == 0);
  AdamW adamw({&a, &b}, {});
  CHECK(backend.ledger()[Tag::Optimizer].total_count == 4);
  CHECK(backend.ledger()[Tag::Optimizer].peak_bytes == 2 * 8 * (15 + 6));
  for (std::size_t i = 0; i < 2; ++i)
    for (const Tensor* m : {&adamw.moment_m(i), &adamw.moment_v(i)}) {
      CHECK(m->shape() == adamw.parameters()[i]->shape());
      for (double x : to_host_f64(*m)) CHECK(x == 0);
    }
}

TEST_CASE_FIXTURE(Fixture, "a resumed run takes the same steps, bit for bit") {
  auto start = [&](unsigned seed) {
    return Parameter("p", random_tensor(backend, DType::F64, {3, 5}, seed), DType::F64);
  };
  Parameter whole = start(7), first = start(7), second = start(8);
  AdamW straight({&whole}, {}), before({&first}, {}), after({&second}, {});
  for (unsigned t = 0; t < 6; ++t) {
    if (t == 3) {  // what a checkpoint restores: values, moments, count
      backend.copy(second.value(), first.value());
      backend.copy(after.moment_m(0), before.moment_m(0));
      backend.copy(after.moment_v(0), before.moment_v(0));
      after.set_steps_done(before.steps_done());
    }
    AdamW& resumed = t < 3 ? before : after;
    give_gradient(whole, 30 + t);
    give_gradient(t < 3 ? first : second, 30 + t);
    straight.step(0.1f, 1.0f, straight.grad_norm_sq());
    resumed.step(0.1f, 1.0f, resumed.grad_norm_sq());
  }
  CHECK(to_host_f64(second.value()) == to_host_f64(whole.value()));
}

TEST_CASE_FIXTURE(Fixture, "a gradient that nobody wrote is zero, not last step's") {
  AdamW adamw({&a, &b}, {});
  give_gradient(a, 1);
  give_gradient(b, 2);
  a.zero_grad();  // stale numbers stay in the buffer
  double sum = 0;
  for (double x : to_host_f64(b.grad())) sum += x * x;
  CHECK(to_host_f64(adamw.grad_norm_sq())[0] == doctest::Approx(sum).epsilon(1e-14));
  const std::vector<double> before = to_host_f64(a.value());
  adamw.step(0.1f, 0, adamw.grad_norm_sq());
  CHECK(to_host_f64(a.value()) == before);
}

TEST_CASE_FIXTURE(Fixture, "a norm that is not finite changes nothing") {
  AdamW adamw({&a}, {0.9f, 0.999f, 1e-8f, 0.1f});
  for (double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    give_gradient(a, 1);
    a.grad().data<double>()[4] = bad;
    const std::vector<double> before = to_host_f64(a.value());
    adamw.step(0.1f, 1.0f, adamw.grad_norm_sq());
    CHECK(to_host_f64(a.value()) == before);
    for (double x : to_host_f64(adamw.moment_m(0))) CHECK(x == 0);
  }
  CHECK(adamw.steps_done() == 2);  // the count goes on: the host did not wait for the verdict
}

TEST_CASE_FIXTURE(Fixture, "the BF16 copy follows the master") {
  Parameter p("p", random_tensor(backend, DType::F32, {4, 3}, 5), DType::BF16);
  AdamW adamw({&p}, {});
  Sink g = p.sink();
  backend.fill(g.tensor, 1.0);
  const std::vector<double> before = to_host_f64(p.compute());
  adamw.step(0.25f, 0, adamw.grad_norm_sq());
  const std::vector<float> master = to_host<float>(p.value());
  const std::vector<double> copy = to_host_f64(p.compute());
  CHECK(copy != before);
  for (std::size_t i = 0; i < master.size(); ++i)
    CHECK(copy[i] == static_cast<double>(static_cast<float>(bf16(master[i]))));
}

TEST_CASE_FIXTURE(Fixture, "misuse is refused") {
  Parameter single("single", random_tensor(backend, DType::F32, {2}, 1), DType::F32);
  auto other = make_cpu_backend(CpuMode::Reference);
  Parameter far("far", random_tensor(*other, DType::F64, {2}, 1), DType::F64);
  CHECK_THROWS_AS(AdamW({}, {}), Error);
  CHECK_THROWS_WITH_AS(AdamW({&a, &b, &a}, {}), doctest::Contains("a appears twice"), Error);
  CHECK_THROWS_WITH_AS(AdamW({&a, &single}, {}), doctest::Contains("another dtype"), Error);
  CHECK_THROWS_WITH_AS(AdamW({&a, &far}, {}), doctest::Contains("another device"), Error);
  AdamW adamw({&a}, {});
  CHECK_THROWS_AS(adamw.step(0.1f, 0, Tensor()), Error);
}
