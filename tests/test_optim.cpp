// AdamW against a direct transcription in double, and the norm that clips it.
#include <omp.h>

#include <limits>

#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Slot {
  std::vector<double> value, grad, m, v;
  double decay;
  double rate = 1;  // factor of the learning rate
};

// One parameter set on a backend, from the same numbers each time.
std::vector<AdamWSlot> make_slots(Backend& b, DType dtype, const std::vector<Slot>& slots,
                                  bool compute) {
  std::vector<AdamWSlot> out;
  for (const Slot& s : slots) {
    const Shape shape{static_cast<std::int64_t>(s.value.size())};
    AdamWSlot a{tensor_from(b, dtype, shape, s.value),
                tensor_from(b, dtype, shape, s.grad),
                tensor_from(b, dtype, shape, s.m),
                tensor_from(b, dtype, shape, s.v),
                {},
                static_cast<float>(s.decay),
                static_cast<float>(s.rate)};
    if (compute) a.compute = b.empty(Tag::Params, DType::BF16, shape);
    out.push_back(a);
  }
  return out;
}

std::vector<Slot> random_slots() {
  std::vector<Slot> slots;
  unsigned seed = 1;
  for (std::int64_t n : {1, 37, 0, 20000}) {
    Slot s{random_values(n, seed),
           random_values(n, seed + 1),
           random_values(n, seed + 2, 0.1),
           random_values(n, seed + 3, 0.1),
           n % 2 ? 0.01 : 0.0,
           n == 37 ? 16.0 : 1.0};
    for (double& v : s.v) v = std::abs(v);
    for (auto* x : {&s.value, &s.grad, &s.m, &s.v})
      for (double& e : *x) e = static_cast<float>(e);
    slots.push_back(s);
    seed += 4;
  }
  return slots;
}

// torch.optim.AdamW's single-tensor step, in double.
void step(Slot& s, const AdamWStep& a, double norm) {
  double clip = a.max_norm > 0 ? std::min(1.0, a.max_norm / (norm + 1e-6)) : 1.0;
  double c1 = 1 - std::pow(static_cast<double>(a.beta1), a.step),
         c2 = 1 - std::pow(static_cast<double>(a.beta2), a.step);
  for (std::size_t i = 0; i < s.value.size(); ++i) {
    double g = s.grad[i] * clip;
    s.value[i] *= 1 - s.rate * static_cast<double>(a.lr) * static_cast<float>(s.decay);
    s.m[i] = a.beta1 * s.m[i] + (1 - static_cast<double>(a.beta1)) * g;
    s.v[i] = a.beta2 * s.v[i] + (1 - static_cast<double>(a.beta2)) * g * g;
    s.value[i] -= s.rate * a.lr / c1 * s.m[i] / (std::sqrt(s.v[i]) / std::sqrt(c2) + a.eps);
  }
}

Tensor norm_of(Backend& b, DType dtype, const std::vector<AdamWSlot>& slots) {
  std::vector<Tensor> grads;
  for (const AdamWSlot& s : slots) grads.push_back(s.grad);
  Tensor out = b.empty(Tag::Workspace, dtype, {1});
  b.sum_squares(out, grads);
  return out;
}

}  // namespace

TEST_CASE("adamw agrees with the formula in double") {
  for (Backend* b : {&reference(), &fast()})
    for (DType dtype : {DType::F32, DType::F64})
      for (float max_norm : {0.0f, 1.0f, 1e9f})
        for (std::int64_t t : {1, 2, 1000}) {
          std::vector<Slot> want = random_slots();
          std::vector<AdamWSlot> slots = make_slots(*b, dtype, want, dtype == DType::F32);
          AdamWStep a{1e-2f, 0.9f, 0.999f, 1e-8f, t, max_norm};
          double square = 0;
          for (const Slot& s : want)
            for (double g : s.grad) square += g * g;
          Tensor norm = norm_of(*b, dtype, slots);
          check_close(values(norm), {square}, 4 * unit_roundoff(dtype),
                      {5 * 0x1p-53 * std::sqrt(20038.0) * square}, "sum_squares");
          b->adamw(slots, a, norm);
          const double u = unit_roundoff(dtype);
          for (std::size_t i = 0; i < want.size(); ++i) {
            step(want[i], a, std::sqrt(square));
            std::vector<double> slack;
            for (std::size_t j = 0; j < want[i].value.size();
                 ++j)  // ten operations on an update of size lr |m| / sqrt(v)
              slack.push_back(16 * u * (1 + std::abs(want[i].value[j])) + 1e-300);
            check_close(values(slots[i].value), want[i].value, 4 * u, slack, "value");
            check_close(values(slots[i].m), want[i].m, 8 * u, {8 * u}, "m");
            check_close(values(slots[i].v), want[i].v, 8 * u, {8 * u}, "v");
            if (!slots[i].compute.defined()) continue;
            std::vector<double> masters = values(slots[i].value);
            for (double& v : masters) v = static_cast<float>(bf16(static_cast<float>(v)));
            CHECK(values(slots[i].compute) == masters);
          }
        }
}

TEST_CASE("a gradient that is not finite changes nothing") {
  for (Backend* b : {&reference(), &fast()})
    for (double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      std::vector<Slot> want = random_slots();
      want[1].grad[5] = bad;
      std::vector<AdamWSlot> slots = make_slots(*b, DType::F32, want, false);
      b->adamw(slots, {1e-2f}, norm_of(*b, DType::F32, slots));
      for (std::size_t i = 0; i < want.size(); ++i) {
        CHECK(values(slots[i].value) == want[i].value);
        CHECK(values(slots[i].m) == want[i].m);
        CHECK(values(slots[i].v) == want[i].v);
      }
    }
}

TEST_CASE("buffers that do not belong together are refused") {
  std::vector<AdamWSlot> slots = make_slots(fast(), DType::F32, random_slots(), false);
  Tensor norm = norm_of(fast(), DType::F32, slots);
  slots[1].m = random_tensor(fast(), DType::F32, {36}, 1);
  CHECK_THROWS_AS(fast().adamw(slots, {1e-2f}, norm), Error);
}

TEST_CASE("norm and update do not depend on the number of threads") {
  const int threads = omp_get_max_threads();
  std::vector<double> want;
  for (int n : {threads, 1, 3}) {
    omp_set_num_threads(n);
    std::vector<AdamWSlot> slots = make_slots(fast(), DType::F32, random_slots(), false);
    Tensor norm = norm_of(fast(), DType::F32, slots);
    fast().adamw(slots, {1e-2f, 0.9f, 0.999f, 1e-8f, 1, 1.0f}, norm);
    std::vector<double> got = values(slots[3].value);
    got.push_back(values(norm)[0]);
    if (want.empty()) want = got;
    CHECK(got == want);
  }
  omp_set_num_threads(threads);
}
