#include "08_missing_r.h"

#include <doctest/doctest.h>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

// Checks the gradients of A and B, and with `and_x` that of x too.
void judge(std::int64_t rank, bool and_x) {
  CAPTURE(rank);
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const std::int64_t T = 4, K = 6, N = 5;
  auto random = [&](Shape shape, unsigned seed) {
    const std::vector<double> values = random_values(shape.numel(), seed);
    return tensor_from(*cpu, DType::F64, shape, values, Tag::Params);
  };
  const Weight w("w", random({N, K}, 1));
  Parameter a("A", random({rank, K}, 2), DType::F64), b("B", random({N, rank}, 3), DType::F64);
  const Tensor x = random({T, K}, 4);
  const std::vector<Tensor> inputs = and_x ? std::vector<Tensor>{x} : std::vector<Tensor>{};
  const GradcheckResult r =
      gradcheck(*cpu,
                [&](Tape& tape, const std::vector<Var>& in) {
                  return exercise::lora(tape, in.empty() ? Var(x) : in[0], w, a, b, 6);
                },
                inputs, {&a, &b});
  CHECK_MESSAGE(r.ok, r.message);
}

}  // namespace

TEST_CASE("8: the gradients of A and B, at any rank") {
  for (std::int64_t rank : {1, 3, 4}) judge(rank, false);
}

TEST_CASE("8: and that of x") {
  for (std::int64_t rank : {1, 3, 4}) judge(rank, true);
}
