// The tape: gradients by demand, shared buffers, early frees, and no logits matrix. Would catch an
// activation that is saved for nothing, a buffer changed under another reader's feet, a gradient
// that crosses tapes.
#include "autograd/tape.h"

#include <functional>
#include <limits>
#include <optional>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

namespace {

constexpr std::int64_t T = 4, C = 6;

struct Fixture {
  std::unique_ptr<Backend> owner = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *owner;

  Tensor rnd(Shape shape, unsigned seed) { return random_tensor(backend, DType::F64, shape, seed); }
  Weight frozen(Shape shape, unsigned seed) { return Weight("w", rnd(shape, seed)); }
  std::int64_t live(Tag tag) const { return backend.ledger()[tag].live_bytes; }
  std::int64_t count(Tag tag) const { return backend.ledger()[tag].total_count; }
};

constexpr std::int64_t kBytes = T * C * 8;  // of one activation here

struct ProbeNode : Node {
  Edge x;
  std::function<void(const Tensor&)> look;
  ProbeNode(Edge x, std::function<void(const Tensor&)> look) : x(x), look(std::move(look)) {}
  const char* name() const override { return "probe"; }
  void backward(Tape& tape, const Tensor& dy) override {
    look(dy);
    tape.pass(x, dy);
  }
};

Var probe(Tape& tape, const Var& x, std::function<void(const Tensor&)> look) {
  return tape.record<ProbeNode>(x.value(), x, std::move(look));
}

}  // namespace

TEST_CASE_FIXTURE(Fixture, "nodes are recorded in order, and only where something trains") {
  Weight w = frozen({C, C}, 1), gain = frozen({C}, 2);
  Tape tape(backend);
  Var x(rnd({T, C}, 3));
  Var before = add(tape, rmsnorm(tape, linear(tape, x, w), gain, 1e-5), x);
  CHECK(!before.needs_grad());
  CHECK(tape.n_nodes() == 0);
  Var leaf = tape.leaf(rnd({T, C}, 4));
  Var y = swiglu(tape, linear(tape, leaf, w), before);
  CHECK(y.needs_grad());
  CHECK(tape.node_names() == std::vector<std::string>{"frozen_linear", "swiglu"});
  tape.backward(y, rnd({T, C}, 5));
  CHECK(tape.gradient(leaf).shape() == Shape{T, C});
}

TEST_CASE_FIXTURE(Fixture, "without gradients nothing is saved") {
  Weight w = frozen({C, C}, 1), gain = frozen({C}, 2);
  Parameter p("p", rnd({C, C}, 3), DType::F64);
  Segments segments = make_segments(backend, {0, T});
  AttentionShape shape{2, 2, 3, 0.5f, 0};
  Tape tape(backend, Tape::Mode::NoGrad);
  Var x(rnd({T, C}, 4));
  backend.ledger().reset_peaks();
  for (int layer = 0; layer < 5; ++layer) {
    x = rmsnorm(tape, x, gain, 1e-5);
    x = attention(tape, x, linear(tape, x, p), linear(tape, x, w), shape, segments);
    x = dropout(tape, swiglu(tape, x, x), 0.1f, {});
    CHECK(live(Tag::Activations) == kBytes);  // the result, nothing else
  }
  CHECK(tape.n_nodes() == 0);
  CHECK(count(Tag::Backward) == 0);
  // At any depth at most these live at one time: the input, attention's three inputs and its
  // log-sum-exp.
  CHECK(backend.ledger()[Tag::Activations].peak_bytes <= 4 * kBytes + 2 * T * 8);
}

TEST_CASE_FIXTURE(Fixture, "ops whose backward reads no value save none") {
  Weight w = frozen({C, C}, 1);
  std::vector<double> angles(static_cast<std::size_t>(T * 2), 0.5);
  Tensor table = tensor_from(backend, DType::F64, {T, 2}, angles);
  Tensor positions = to_device(backend, Tag::Workspace, std::vector<std::int32_t>{0, 1, 2, 3});
  Tape tape(backend);
  Var x = tape.leaf(rnd({T, C}, 2));
  x = add(tape, x, x);  // the first activation, so that linear's input is one too
  x = linear(tape, x, w);
  x = rope(tape, x, table, positions, 2);
  x = dropout(tape, x, 0.5f, {});
  x = gather_rows(tape, x, positions);
  x = add(tape, x, x);
  CHECK(tape.n_nodes() == 7);
  CHECK(live(Tag::Activations) == kBytes);  // only x itself, which we hold
}

TEST_CASE_FIXTURE(Fixture, "a node's memory returns as soon as it ran") {
  Weight gain = frozen({C}, 1);
  std::vector<std::int64_t> activations, backward;
  auto look = [&](const Tensor&) {
    activations.push_back(live(Tag::Activations));
    backward.push_back(live(Tag::Backward));
  };
  Tape tape(backend);
  {
    Var x = tape.leaf(rnd({T, C}, 2));
    for (int i = 0; i < 4; ++i) x = rmsnorm(tape, probe(tape, x, look), gain, 1e-5);
    Tensor dy = rnd({T, C}, 3);
    tape.backward(x, dy);
  }
  REQUIRE(activations.size() == 4);
  for (std::size_t i = 1; i < 4; ++i) CHECK(activations[i] < activations[i - 1]);
  for (std::int64_t bytes : backward) CHECK(bytes <= 2 * kBytes);  // a chain needs dy and dx
  CHECK(live(Tag::Activations) == 0);
  CHECK(live(Tag::Backward) == kBytes);  // the leaf's gradient
}

TEST_CASE_FIXTURE(Fixture, "a sum shares one gradient buffer until somebody adds to it") {
  Tape tape(backend);
  Var a = tape.leaf(rnd({T, C}, 1)), b = tape.leaf(rnd({T, C}, 2));
  Var y = add(tape, add(tape, a, b), a);  // a is used twice: 2 dy; b once: dy
  Tensor dy = rnd({T, C}, 3);
  const std::vector<double> given = to_host_f64(dy);
  tape.backward(y, dy);
  CHECK(count(Tag::Backward) == 1);  // only a needed memory of its own
  CHECK(tape.gradient(b).raw() == dy.raw());
  CHECK(to_host_f64(dy) == given);
  const std::vector<double> da = to_host_f64(tape.gradient(a));
  for (std::size_t i = 0; i < da.size(); ++i) CHECK(da[i] == 2 * given[i]);
}

TEST_CASE_FIXTURE(Fixture, "the residual stream's gradient is added to in place") {
  Weight w = frozen({C, C}, 1);
  Tape tape(backend);
  Var x = tape.leaf(rnd({T, C}, 2));
  for (int layer = 0; layer < 6; ++layer) x = add(tape, x, linear(tape, x, w));
  Var loss =
      head_loss(tape, x, frozen({5, C}, 3),
                to_device(backend, Tag::Workspace, std::vector<std::int32_t>{0, 4, 2, 2}), 1.0, 2);
  x = Var();
  tape.backward(loss);
  // The loss's own dy and dx; then, per layer, o's branch ends before x's: never a copy.
  CHECK(count(Tag::Backward) <= 2 + 6);
}

TEST_CASE_FIXTURE(Fixture, "parameters accumulate over tapes until zero_grad") {
  Parameter p("p", rnd({3, C}, 1), DType::F64);
  Tensor x = rnd({T, C}, 2), dy = rnd({T, 3}, 3);
  auto run = [&] {
    Tape tape(backend);
    tape.backward(linear(tape, Var(x), p), dy);
    return to_host_f64(p.grad());
  };
  CHECK(!p.has_grad());
  backend.fill(p.grad(), std::numeric_limits<double>::quiet_NaN());  // never read before written
  const std::vector<double> once = run(), twice = run();
  p.zero_grad();
  CHECK(run() == once);
  for (std::size_t i = 0; i < once.size(); ++i) CHECK(twice[i] == doctest::Approx(2 * once[i]));
  CHECK(backend.weight_gradient_matmuls() == 3);
  CHECK(count(Tag::Gradients) == 1);
}

TEST_CASE_FIXTURE(Fixture, "misuse is refused") {
  Tape tape(backend), other(backend), closed(backend, Tape::Mode::NoGrad);
  Var x = tape.leaf(rnd({T, C}, 1)), foreign = other.leaf(rnd({T, C}, 2));
  CHECK_THROWS_WITH_AS(add(tape, x, foreign), doctest::Contains("another tape"), Error);
  CHECK(!add(closed, x, x).needs_grad());  // a way to detach
  CHECK_THROWS_AS(closed.leaf(rnd({1}, 1)), Error);
  CHECK_THROWS_AS(tape.backward(Var(rnd({1}, 1))), Error);  // a constant
  CHECK_THROWS_WITH_AS(tape.backward(x), doctest::Contains("scalar"), Error);
  CHECK_THROWS_AS(tape.gradient(x), Error);  // before backward
  Var y = add(tape, x, x);
  CHECK_THROWS_AS(Tape(backend).backward(y, rnd({T, C}, 3)), Error);
  Tape second(backend);
  Var z = second.leaf(rnd({T, C}, 1));
  Var s = add(second, z, z);
  CHECK_THROWS_AS(second.backward(s, rnd({T, C + 1}, 3)), Error);  // shape of dy
  Tape third(backend);
  z = third.leaf(rnd({T, C}, 1));
  CHECK_THROWS_AS(third.backward(z, random_tensor(backend, DType::F32, {T, C}, 3)), Error);
  tape.backward(y, rnd({T, C}, 3));
  CHECK_THROWS_AS(tape.backward(y, rnd({T, C}, 3)), Error);  // once per tape
  CHECK_THROWS_AS(add(tape, x, x), Error);                   // and no op after it
  CHECK_THROWS_AS(tape.gradient(y), Error);                  // y is no leaf
}

TEST_CASE_FIXTURE(Fixture, "a tape at the address of an ended one takes none of its values") {
  std::optional<Tape> tape(std::in_place, backend);
  const Var old = tape->leaf(rnd({T, C}, 1));
  tape.emplace(backend);
  const Var own = tape->leaf(rnd({T, C}, 2));
  CHECK(own.id() == old.id());
  CHECK_THROWS_WITH_AS(add(*tape, own, old), doctest::Contains("another tape"), Error);
}

TEST_CASE_FIXTURE(Fixture,
                  "what has no value is refused, and so are elementwise shapes that differ") {
  Tape tape(backend);
  CHECK_THROWS_AS(tape.leaf({}), Error);
  CHECK_THROWS_AS(tape.backward(Var()), Error);
  CHECK_THROWS_AS(Var().backend(), Error);
  CHECK_THROWS_AS(add(tape, {}, {}), Error);
  CHECK_THROWS_AS(dropout(tape, {}, 0.5f, {}), Error);
  CHECK_THROWS_AS(to_host_f64({}), Error);
  CHECK_THROWS_AS(Parameter("p", {}, DType::F64), Error);
  CHECK_THROWS_WITH_AS(gradcheck(backend, [](Tape&, const auto&) { return Var(); }, {rnd({2}, 1)}),
                       doctest::Contains("no value"), Error);
  const Tensor x = rnd({T, C}, 1), longer = rnd({T + 1, C}, 2), wider = rnd({T, C + 1}, 3);
  for (const Tensor& other : {longer, wider}) {
    CHECK_THROWS_AS(backend.copy(x, other), Error);
    CHECK_THROWS_AS(backend.add(x, x, other), Error);
    CHECK_THROWS_AS(backend.scale(x, GradMode::Add, 1, {}, other), Error);
  }
}

TEST_CASE_FIXTURE(Fixture, "ops check shapes and name what is wrong") {
  Tape tape(backend);
  Var x(rnd({T, C}, 1));
  Weight w = frozen({5, C + 1}, 2), missing;
  Parameter p("adapter.a", rnd({3, C + 1}, 3), DType::F64);
  auto throws = [](auto f, const char* text) {
    CHECK_THROWS_WITH_AS(f(), doctest::Contains(text), Error);
  };
  throws([&] { linear(tape, x, w); }, "linear: w (N,K): expected (5,6), got (5,7)");
  throws([&] { linear(tape, x, missing); }, "missing");
  throws([&] { linear(tape, x, p); }, "adapter.a");
  throws([&] { linear(tape, Var(), w); }, "linear: x (T,K): got nothing");
  throws([&] { rmsnorm(tape, x, w, 1e-5); }, "rmsnorm: gain (C)");
  throws([&] { add(tape, x, Var(rnd({T, C + 1}, 4))); }, "add");
  throws([&] { swiglu(tape, x, Var(rnd({T + 1, C}, 4))); }, "swiglu: up");
  throws([&] { dropout(tape, x, 1.0f, {}); }, "dropout: p = 1");
  throws([&] { dropout(tape, x, std::nanf(""), {}); }, "dropout");
  Segments short_segments = make_segments(backend, {0, T - 1});
  AttentionShape shape{2, 2, 3, 1, 0};
  throws([&] { attention(tape, x, x, x, shape, short_segments); }, "segments hold 3 tokens");
  shape.n_kv_heads = 4;
  throws([&] { attention(tape, x, x, x, shape, short_segments); }, "attention: 2 heads");
  Tensor table = rnd({9, 5}, 5);
  Tensor positions = to_device(backend, Tag::Workspace, std::vector<std::int32_t>{0, 1, 2, 3});
  throws([&] { rope(tape, x, table, positions, 5); }, "rope");
}

TEST_CASE("head_loss: the chunk size changes nothing but memory, and logits never exist whole") {
  const std::int64_t n = 37, V = 53, width = 8;
  for (DType dtype : {DType::F64, DType::F32, DType::BF16}) {
    CAPTURE(dtype_name(dtype));
    auto owner = make_cpu_backend(CpuMode::Reference);
    Backend& backend = *owner;
    Weight head("head", random_tensor(backend, dtype, {V, width}, 1));
    Tensor x = random_tensor(backend, dtype, {n, width}, 2);
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < n; ++i) ids.push_back(static_cast<std::int32_t>(i * 31 % V));
    Tensor targets = to_device(backend, Tag::Workspace, ids);
    const std::int64_t stat = dtype_size(stat_dtype(dtype)) * static_cast<std::size_t>(n);
    std::vector<double> first_loss, first_dx;
    for (std::int64_t chunk : {n, std::int64_t{1}, std::int64_t{5}, n + 100}) {
      const std::int64_t before = backend.ledger()[Tag::Workspace].live_bytes;
      backend.ledger().reset_peaks();
      Tape tape(backend);
      Var leaf = tape.leaf(x);
      Var loss = head_loss(tape, leaf, head, targets, 0.25, chunk);
      CHECK(loss.dtype() == stat_dtype(dtype));
      const std::int64_t logits_bytes =
          std::min(chunk, n) * V * static_cast<std::int64_t>(dtype_size(dtype));
      CHECK(backend.ledger()[Tag::Workspace].peak_bytes - before == logits_bytes + stat);
      tape.backward(loss);
      CHECK(tape.gradient(leaf).dtype() == dtype);
      std::vector<double> dx = to_host_f64(tape.gradient(leaf));
      if (first_dx.empty()) first_loss = to_host_f64(loss.value()), first_dx = dx;
      CHECK(to_host_f64(loss.value()) == first_loss);
      CHECK(dx == first_dx);

      const std::int64_t made = backend.ledger()[Tag::Activations].total_count;
      Tape no_grad(backend, Tape::Mode::NoGrad);
      CHECK(to_host_f64(head_loss(no_grad, Var(x), head, targets, 0.25, chunk).value()) ==
            first_loss);
      CHECK(backend.ledger()[Tag::Activations].total_count == made + 1);  // the scalar: no dx
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "head_loss of no rows is zero, and its upstream factor counts") {
  Weight head = frozen({5, C}, 1);
  Tape tape(backend);
  Var none = tape.leaf(rnd({0, C}, 2));
  Var zero = head_loss(tape, none, head, to_device(backend, Tag::Workspace, {}), 1.0, 4);
  CHECK(to_host_f64(zero.value())[0] == 0);
  Tensor targets = to_device(backend, Tag::Workspace, std::vector<std::int32_t>{1, 0, 4, 4});
  Tensor x = rnd({T, C}, 3);
  auto gradient = [&](double upstream) {
    Tape t(backend);
    Var leaf = t.leaf(x);
    Var loss = head_loss(t, leaf, head, targets, 1.0, 3);
    if (upstream == 0)
      t.backward(loss);  // of a scalar: dy = 1
    else
      t.backward(loss, tensor_from(backend, DType::F64, {1}, {upstream}));
    return to_host_f64(t.gradient(leaf));
  };
  const std::vector<double> one = gradient(1), third = gradient(1.0 / 3);
  CHECK(gradient(0) == one);
  for (std::size_t i = 0; i < one.size(); ++i)
    CHECK(third[i] == doctest::Approx(one[i] / 3).epsilon(1e-14));
}
