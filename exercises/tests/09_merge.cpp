#include "09_merge.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cpu/cpu_backend.h"
#include "lora/lora_linear.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

constexpr std::int64_t N = 9, K = 11, R = 3;

struct Layer {
  std::unique_ptr<Backend> cpu = make_cpu_backend(CpuMode::Reference);
  Tensor w = values({N, K}, 1), a = values({R, K}, 2), b = values({N, R}, 3);
  double scale = 0.7;
  Tensor values(Shape shape, unsigned seed) {
    return tensor_from(*cpu, DType::F64, shape, random_values(shape.numel(), seed), Tag::Params);
  }
};

double difference(const Tensor& x, const Tensor& y) {
  const std::vector<double> p = to_host_f64(x), q = to_host_f64(y);
  double largest = 0;
  for (std::size_t i = 0; i < p.size(); ++i) largest = std::max(largest, std::abs(p[i] - q[i]));
  return largest;
}

}  // namespace

TEST_CASE("9: the merged matrix does to every unit vector what the layer and its adapter do") {
  Layer m;
  std::vector<double> unit(K * K);
  for (std::size_t k = 0; k < K; ++k) unit[k * K + k] = 1;
  const Var x(tensor_from(*m.cpu, DType::F64, {K, K}, unit));
  Parameter a("A", m.a, DType::F64), b("B", m.b, DType::F64);
  Tape tape(*m.cpu, Tape::Mode::NoGrad);
  const Tensor before =
      lora_linear(tape, x, Weight("w", m.w), nullptr, a, b, m.scale, 0, {}).value();
  const Weight one("w", exercise::merged(m.w, m.a, m.b, m.scale));
  CHECK(difference(linear(tape, x, one).value(), before) < 1e-14);
}

TEST_CASE("9: merging leaves W alone, and unmerging gives it back to F64's rounding") {
  Layer m;
  const std::vector<double> w = to_host_f64(m.w);
  const Tensor merged = exercise::merged(m.w, m.a, m.b, m.scale);
  CHECK(difference(merged, m.w) > 0.1);
  const double left = difference(exercise::unmerged(merged, m.a, m.b, m.scale), m.w);
  CHECK(to_host_f64(m.w) == w);
  // Two roundings of numbers below 16, each by at most half of their last bit.
  CHECK(left <= 2 * 8 * 0x1p-52);
  std::printf("largest difference after merging and unmerging: %.1e\n", left);
}

TEST_CASE("9: which updates survive BF16") {
  for (int power = 1; power <= 12; ++power)
    for (double factor : {1.0, 1.01}) {
      const double update = factor * std::pow(2.0, -power);
      CAPTURE(update);
      const float rounded = static_cast<float>(bf16(static_cast<float>(1 + update)));
      CHECK(exercise::survives_bf16(update) == (rounded != 1.0f));
    }
}
