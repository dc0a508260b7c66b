#include "07_tag.h"

#include <doctest/doctest.h>

#include <array>

#include "cpu/cpu_backend.h"
#include "lora/lora_linear.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

constexpr std::int64_t T = 5, K = 7, N = 6, R = 2;
constexpr float kP = 0.25f;
constexpr double kScale = 1.5;
const RandomKey kKey{3, 1, 4};

struct Tags {
  Tag base, factor, output, thin, dropped, thin_grad;
};

// x is a constant, so there is no dx.
struct LayerNode : Node {
  Tensor x, s;
  Parameter &a, &b;
  Tags tags;
  LayerNode(Tensor input, Tensor thin, Parameter& a_in, Parameter& b_in, const Tags& t)
      : x(std::move(input)), s(std::move(thin)), a(a_in), b(b_in), tags(t) {}
  const char* name() const override { return "layer"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Sink db = b.sink(), da = a.sink();
    backend.weight_gradient(db.tensor, db.mode, kScale, dy, s);
    Tensor ds = backend.empty(tags.thin_grad, DType::F64, {T, R});
    backend.matmul_nn(ds, GradMode::Write, kScale, dy, b.compute());
    Tensor dropped = backend.empty(tags.dropped, DType::F64, {T, K});
    backend.dropout(dropped, GradMode::Write, x, kP, kKey);
    backend.weight_gradient(da.tensor, da.mode, 1, ds, dropped);
  }
};

Var layer(Tape& tape, const Tensor& x, const Weight& w, Parameter& a, Parameter& b,
          const Tags& tags) {
  Backend& backend = tape.backend();
  Tensor y = backend.empty(tags.output, DType::F64, {T, N});
  Tensor s = backend.empty(tags.thin, DType::F64, {T, R});
  Tensor dropped = backend.empty(tags.dropped, DType::F64, {T, K});
  backend.linear_forward(y, x, w);
  backend.dropout(dropped, GradMode::Write, x, kP, kKey);
  backend.matmul_nt(s, GradMode::Write, 1, dropped, a.compute());
  backend.matmul_nt(y, GradMode::Add, kScale, s, b.compute());
  return tape.record<LayerNode>(y, x, s, a, b, tags);
}

// Live and peak bytes of each tag, at three moments.
using Books = std::vector<std::array<std::int64_t, 2 * kTagCount>>;

Books run(const Tags& tags, bool library) {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *cpu;
  Books books;
  auto note = [&] {
    auto& row = books.emplace_back();
    for (int i = 0; i < kTagCount; ++i) {
      const Ledger::Entry& e = backend.ledger()[static_cast<Tag>(i)];
      row[static_cast<std::size_t>(2 * i)] = e.live_bytes;
      row[static_cast<std::size_t>(2 * i + 1)] = e.peak_bytes;
    }
  };
  auto values = [&](Tag tag, Shape shape, unsigned seed) {
    return tensor_from(backend, DType::F64, shape, random_values(shape.numel(), seed), tag);
  };
  const Weight w("w", values(tags.base, {N, K}, 1));
  Parameter a("A", values(tags.factor, {R, K}, 2), DType::F64),
      b("B", values(tags.factor, {N, R}, 3), DType::F64);
  const Tensor x = values(Tag::Activations, {T, K}, 4), dy = values(Tag::Backward, {T, N}, 5);
  note();
  Tape tape(backend);
  Var y = library ? lora_linear(tape, Var(x), w, nullptr, a, b, kScale, kP, kKey)
                  : layer(tape, x, w, a, b, tags);
  note();
  tape.backward(y, dy);
  note();
  return books;
}

}  // namespace

TEST_CASE("7: every tag has the library's bytes: at the start, after forward, after backward") {
  const Tags library{.base = Tag::Weights,
                     .factor = Tag::Params,
                     .output = {},
                     .thin = {},
                     .dropped = {},
                     .thin_grad = {}};
  const Tags yours{exercise::kBase, exercise::kFactor,  exercise::kOutput,
                   exercise::kThin, exercise::kDropped, exercise::kThinGrad};
  const Books right = run(library, true), mine = run(yours, false);
  const std::string moments[] = {"at the start", "after forward", "after backward"};
  for (std::size_t m = 0; m < 3; ++m)
    for (std::size_t i = 0; i < 2 * kTagCount; ++i) {
      const std::string what = concat(moments[m], ", ", tag_name(static_cast<Tag>(i / 2)), ", ",
                                      i % 2 ? "peak" : "live", " bytes");
      CAPTURE(what);
      CHECK(mine[m][i] == right[m][i]);
    }
}
