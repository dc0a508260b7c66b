#include "01_backward.h"

#include <doctest/doctest.h>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "tensor/sample.h"

using namespace lk;

TEST_CASE("1: swish's backward is its derivative, in each of gradcheck's ways") {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  for (const Shape& shape : {Shape{1}, Shape{3, 5}}) {
    const GradcheckResult r = gradcheck(
        *cpu, [](Tape& tape, const std::vector<Var>& in) { return exercise::swish(tape, in[0]); },
        {random_tensor(*cpu, DType::F64, shape, 1)});
    CHECK_MESSAGE(r.ok, r.message);
  }
}

TEST_CASE("1: a gradient that nobody wants takes no memory") {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const Tensor x = random_tensor(*cpu, DType::F64, {3, 5}, 1);
  exercise::SwishNode node{Var(x)};  // of a constant
  Tape tape(*cpu);
  node.backward(tape, x);
  CHECK(cpu->ledger()[Tag::Backward].total_count == 0);
}
