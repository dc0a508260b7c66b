#include "02_sink.h"

#include <doctest/doctest.h>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "tensor/sample.h"

using namespace lk;
using exercise::Check;

namespace {

using AnySink = Sink (*)(Tape&, const Edge&, const Edge&);

struct BlendNode : Node {
  Edge a, b;
  AnySink sink;
  BlendNode(Edge a_in, Edge b_in, AnySink s) : a(a_in), b(b_in), sink(s) {}
  const char* name() const override { return "blend"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink da = sink(tape, a, b)) tape.backend().scale(da.tensor, da.mode, 2, {}, dy);
    if (Sink db = sink(tape, b, a)) tape.backend().scale(db.tensor, db.mode, 3, {}, dy);
  }
};

// y = 2 a + 3 b
Var blend(Tape& tape, const Var& a, const Var& b, AnySink sink) {
  Tensor y = tape.activation(a.dtype(), a.value().shape());
  tape.backend().scale(y, GradMode::Write, 2, {}, a.value());
  tape.backend().scale(y, GradMode::Add, 3, {}, b.value());
  if (!tape.wants(a, b)) return tape.constant(y);
  return tape.record<BlendNode>(y, a, b, sink);
}

// Buffers allocated by a backward in which only a wants a gradient.
std::int64_t n_buffers(AnySink sink) {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const Tensor x = random_tensor(*cpu, DType::F64, {3}, 1);
  Tape tape(*cpu);
  Var y = blend(tape, tape.leaf(x), Var(x), sink);
  auto made = [&] {
    std::int64_t n = 0;
    for (int tag = 0; tag < kTagCount; ++tag) n += cpu->ledger()[static_cast<Tag>(tag)].total_count;
    return n;
  };
  const std::int64_t before = made();
  tape.backward(y, x);
  return made() - before;
}

Sink rightly(Tape& tape, const Edge& x, const Edge&) { return tape.sink(x); }

Check seen_by(AnySink sink) {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const GradcheckResult r = gradcheck(
      *cpu, [&](Tape& tape, const std::vector<Var>& in) { return blend(tape, in[0], in[1], sink); },
      {random_tensor(*cpu, DType::F64, {3}, 1), random_tensor(*cpu, DType::F64, {3}, 2)});
  if (r.ok) return n_buffers(sink) == n_buffers(rightly) ? Check::Nothing : Check::Ledger;
  MESSAGE(r.message);
  if (r.message.starts_with("all")) return Check::All;
  return r.message.starts_with("twice") ? Check::Twice : Check::Alone;
}

void judge(AnySink sink, Check answer) {
  const Check seen = seen_by(sink);
  REQUIRE_MESSAGE(seen != Check::Nothing, "this sink is not broken yet");
  CHECK_MESSAGE(seen == answer, "another check sees this fault");
}

}  // namespace

TEST_CASE("2: a sink that overwrites") { judge(exercise::overwrites, exercise::kSeesOverwrites); }
TEST_CASE("2: a sink that gives to all") {
  judge(exercise::gives_to_all, exercise::kSeesGivesToAll);
}
TEST_CASE("2: a sink that gives to none") {
  judge(exercise::gives_to_none, exercise::kSeesGivesToNone);
}
TEST_CASE("2: a sink that gives to pairs") {
  judge(exercise::gives_to_pairs, exercise::kSeesGivesToPairs);
}
