#include "05_dropout_mask.h"

#include <doctest/doctest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

constexpr std::int64_t kElements = 64;
constexpr float kP = 0.3f;
const RandomKey kKey{5, 1, 2};

using Rule = bool (*)(const RandomKey&, std::uint64_t, std::uint32_t);

bool ours(const RandomKey& key, std::uint64_t element, std::uint32_t threshold) {
  return dropout_keeps(key, element, threshold);
}

void apply(const Tensor& y, GradMode mode, const Tensor& x, Rule rule) {
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    const bool keep = rule(kKey, static_cast<std::uint64_t>(i), dropout_threshold(kP));
    const double value = keep ? x.data<double>()[i] / (1.0 - static_cast<double>(kP)) : 0;
    double& to = y.data<double>()[i];
    to = mode == GradMode::Add ? to + value : value;
  }
}

struct DropoutNode : Node {
  Edge x;
  Rule rule;
  DropoutNode(Edge input, Rule backward_rule) : x(input), rule(backward_rule) {}
  const char* name() const override { return "dropout"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) apply(dx.tensor, dx.mode, dy, rule);
  }
};

Var dropout(Tape& tape, const Var& x, Rule forward, Rule backward) {
  Tensor y = tape.activation(DType::F64, x.value().shape());
  apply(y, GradMode::Write, x.value(), forward);
  if (!tape.wants(x)) return tape.constant(y);
  return tape.record<DropoutNode>(y, x, backward);
}

struct Checks {
  std::unique_ptr<Backend> cpu = make_cpu_backend(CpuMode::Reference);
  Tensor x = random_tensor(*cpu, DType::F64, {kElements}, 1);

  bool slopes_differ(Rule forward, Rule backward) {
    const GradcheckResult r = gradcheck(
        *cpu,
        [&](Tape& t, const std::vector<Var>& in) { return dropout(t, in[0], forward, backward); },
        {x});
    if (!r.ok) MESSAGE(r.message);
    return !r.ok;
  }
};

}  // namespace

TEST_CASE("5: the mask is wrong in exactly one element, and your answers are what the checks say") {
  int kept = 0, wrong = 0;
  for (std::uint64_t i = 0; i < kElements; ++i) {
    const bool keep = exercise::keeps(kKey, i, dropout_threshold(kP));
    kept += keep, wrong += keep != dropout_keeps(kKey, i, dropout_threshold(kP));
  }
  REQUIRE_MESSAGE(wrong == 1, "the mask differs in ", wrong, " elements");

  Checks checks;
  const double n = kElements, p = kP, deviation = std::sqrt(n * p * (1 - p));
  CHECK(exercise::kSeen.share == (std::abs(kept - n * (1 - p)) > 4 * deviation));
  CHECK(exercise::kSeen.same_mask == checks.slopes_differ(exercise::keeps, exercise::keeps));
  CHECK(exercise::kSeen.other_mask == checks.slopes_differ(ours, exercise::keeps));

  const Tensor &x = checks.x, mine = checks.cpu->empty(Tag::Workspace, DType::F64, x.shape()),
               theirs = checks.cpu->empty(Tag::Workspace, DType::F64, x.shape());
  apply(mine, GradMode::Write, x, exercise::keeps);
  checks.cpu->dropout(theirs, GradMode::Write, x, kP, kKey);
  double largest = 0;
  for (std::int64_t i = 0; i < kElements; ++i)
    largest = std::max(largest, std::abs(mine.data<double>()[i] - theirs.data<double>()[i]));
  CHECK(exercise::kSeen.definition == (largest > 1e-6));
}
