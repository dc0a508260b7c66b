#include "03_no_dw.h"

#include <doctest/doctest.h>

#include <list>

#include "autograd/ops.h"
#include "cpu/cpu_backend.h"
#include "lora/lora_linear.h"
#include "tensor/sample.h"

using namespace lk;
using exercise::Way;

namespace {

struct Counts {
  std::int64_t products = 0, bytes = 0;
};

Counts run(Way way, std::int64_t L, std::int64_t T, std::int64_t C, std::int64_t R) {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *cpu;
  auto parameter = [&](Shape shape, unsigned seed) {
    const std::vector<double> values = random_values(shape.numel(), seed, 0.1);
    return Parameter("p", tensor_from(backend, DType::F64, shape, values, Tag::Params), DType::F64);
  };
  std::list<Weight> frozen;
  std::list<Parameter> trained;
  const Tensor x = random_tensor(backend, DType::F64, {T, C}, 1);
  Counts counts;
  Tape tape(backend);
  Var y = way == Way::Frozen ? tape.leaf(x) : Var(x);
  for (std::int64_t layer = 0; layer < L; ++layer) {
    const unsigned seed = static_cast<unsigned>(10 + 3 * layer);
    if (way == Way::Trained) {
      y = linear(tape, y, trained.emplace_back(parameter({C, C}, seed)));
      continue;
    }
    const Weight& w = frozen.emplace_back("w", random_tensor(backend, DType::F64, {C, C}, seed));
    if (way == Way::Frozen) {
      y = linear(tape, y, w);
      continue;
    }
    Parameter& a = trained.emplace_back(parameter({R, C}, seed + 1));
    Parameter& b = trained.emplace_back(parameter({C, R}, seed + 2));
    y = lora_linear(tape, y, w, nullptr, a, b, 0.5, 0, {});
  }
  counts.bytes = backend.ledger()[Tag::Activations].live_bytes;
  tape.backward(y, random_tensor(backend, DType::F64, {T, C}, 2));
  counts.products = backend.weight_gradient_matmuls();
  return counts;
}

void judge(Way way) {
  for (std::int64_t L : {1, 2, 5}) {
    CAPTURE(L);
    const std::int64_t T = 7, C = 6, R = 2;
    const Counts counted = run(way, L, T, C, R);
    CHECK(exercise::weight_gradients(way, L) == counted.products);
    CHECK(exercise::activation_bytes(way, L, T, C, R) == counted.bytes);
  }
}

}  // namespace

TEST_CASE("3: frozen layers") { judge(Way::Frozen); }
TEST_CASE("3: trained layers") { judge(Way::Trained); }
TEST_CASE("3: layers with LoRA") { judge(Way::Lora); }
