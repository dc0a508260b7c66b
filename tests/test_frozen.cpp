// The promise "only A and B hold gradients and optimizer state" is kept by three locks: types (no
// expression gives a frozen Weight a gradient), keys and tags (memory for a gradient or moment
// cannot be requested), and the ledger of a real step. Snippets that must not compile are in
// compile_fail/.
#include <concepts>
#include <type_traits>

#include "autograd/ops.h"
#include "cpu_ops.h"
#include "lora/lora_linear.h"
#include "lora/trainer.h"
#include "modelfile/weight_hash.h"
#include "nn/adamw.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

// ---- lock 1: types -----------------------------------------------------------------------------

namespace {

template <class W>
concept HasGradient = requires(W w) {
  w.grad();
}
|| requires(W w) { w.sink(); }
|| requires(W w) { w.zero_grad(); };
template <class W>
concept TapeSinks = requires(Tape& t, W& w) {
  t.sink(w);
};
template <class W>
concept TapePasses = requires(Tape& t, W& w, Tensor dy) {
  t.pass(w, dy);
};
template <class W>
concept TapeLeaf = requires(Tape& t, W& w) {
  t.leaf(w);
};
template <class W>
concept TapeGradient = requires(Tape& t, W& w) {
  t.gradient(w);
};
template <class W>
concept TrainableLinear = requires(Tape& t, Var x, W& w) {
  linear(t, x, w, 1.0);
};
template <class W>
concept LoraFactor = requires(Tape& t, Var x, Weight base, W& a, W& b) {
  lora_linear(t, x, base, nullptr, a, b, 1.0, 0.0f, RandomKey{});
};
template <class W>
concept WeightGradient = requires(Backend& b, W& w, Tensor a) {
  b.weight_gradient(w, GradMode::Write, 1.0, a, a);
};

// The right-hand sides hold, so the left-hand sides are not typos.
static_assert(!HasGradient<Weight> && HasGradient<Parameter>);
static_assert(!TapeSinks<Weight> && TapeSinks<Var>);
static_assert(!TapePasses<Weight> && TapePasses<Var>);
static_assert(!TapeLeaf<Weight> && TapeLeaf<Tensor>);
static_assert(!TapeGradient<Weight> && TapeGradient<Var>);
static_assert(!TrainableLinear<Weight> && !TrainableLinear<const Weight> &&
              TrainableLinear<Parameter>);
static_assert(!LoraFactor<Weight> && LoraFactor<Parameter>);
static_assert(!WeightGradient<Weight> && WeightGradient<Tensor>);
static_assert(!std::constructible_from<Var, Weight> && std::constructible_from<Var, Tensor>);
static_assert(!std::constructible_from<Edge, Weight> && std::constructible_from<Edge, Var>);
static_assert(!std::constructible_from<Parameter, std::string, Weight, DType> &&
              std::constructible_from<Parameter, std::string, Tensor, DType>);
static_assert(!std::constructible_from<Parameter, Weight>);
static_assert(!std::constructible_from<AdamW, std::vector<Weight*>, AdamWConfig> &&
              !std::constructible_from<AdamW, std::vector<Weight>, AdamWConfig> &&
              std::constructible_from<AdamW, std::vector<Parameter*>, AdamWConfig>);
static_assert(!std::convertible_to<Weight, Tensor> && !std::convertible_to<Weight, Var>);
static_assert(!std::derived_from<Weight, Parameter> && !std::derived_from<Parameter, Weight>);
// Keys: nobody else can make one, not even with braces.
static_assert(!std::default_initializable<PassKey<Parameter>> &&
              !std::default_initializable<PassKey<AdamW>> && !std::is_aggregate_v<PassKey<AdamW>>);

}  // namespace

// ---- lock 2: tags and keys ---------------------------------------------------------------------

TEST_CASE("memory for gradients and moments cannot be asked for") {
  for (CpuMode mode : {CpuMode::Reference, CpuMode::Fast}) {
    auto backend = make_cpu_backend(mode);
    CHECK_THROWS_WITH_AS(backend->empty(Tag::Gradients, DType::F32, {2}),
                         doctest::Contains("only a Parameter"), Error);
    CHECK_THROWS_WITH_AS(backend->empty(Tag::Optimizer, DType::F32, {2}),
                         doctest::Contains("only the optimizer"), Error);
    CHECK(backend->ledger()[Tag::Gradients].total_count == 0);
    CHECK(backend->ledger()[Tag::Optimizer].total_count == 0);
  }
}

TEST_CASE("a frozen weight's memory cannot become a Parameter or a leaf") {
  auto backend = make_cpu_backend();
  Weight w("w", random_tensor(*backend, DType::F32, {3, 4}, 1));
  Weight loaded("loaded", tensor_from(*backend, DType::F32, {3, 4}, std::vector<double>(12, 1.0),
                                      Tag::Weights));
  CHECK_THROWS_WITH_AS(Parameter("p", loaded.values(), DType::F32), doctest::Contains("frozen"),
                       Error);
  CHECK_THROWS_AS(Parameter("p", loaded.values().slice_rows(1, 2), DType::F32), Error);
  Tape tape(*backend);
  CHECK_THROWS_WITH_AS(tape.leaf(loaded.values()), doctest::Contains("frozen"), Error);
  CHECK(backend->ledger()[Tag::Gradients].total_count == 0);
}

// ---- lock 3: a real step -----------------------------------------------------------------------

namespace {

// Matrices so large, and a batch so small, that all other memory together could not hold the
// gradient of even the smallest frozen matrix: a peak below its size proves that there was none.
ModelConfig wide_config() {
  ModelConfig c = tiny_config();
  c.vocab_size = 300;
  c.hidden_size = 256;
  c.intermediate_size = 320;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 64;
  return c;
}

struct Run {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Adapter> adapter;
  std::unique_ptr<Trainer> trainer;
  std::vector<Row> rows = random_rows({3}, 5, 300);

  Run(DType dtype, const std::vector<std::string>& targets)
      : backend(make_cpu_backend(CpuMode::Reference)) {
    const ModelConfig c = wide_config();
    model = std::make_unique<Transformer>(*backend, c, random_weights(*backend, c, dtype, 3), dtype,
                                          16);
    LoraConfig lora = tiny_lora(targets);
    lora.shape = {1, 1, 0.1f};
    adapter = std::make_unique<Adapter>(*model, lora);
    trainer = std::make_unique<Trainer>(*model, *adapter, TrainerConfig{});
    backend->ledger().reset_peaks();
  }
  void step() {
    const std::vector<const Row*> micro_batch = pointers(rows);
    trainer->step(std::vector<std::vector<const Row*>>{micro_batch, micro_batch});
  }
  std::int64_t smallest_frozen_matrix() const {
    std::int64_t bytes = INT64_MAX;
    visit_weights(model->weights(), [&](const Weight& w) {
      if (w.shape().rank() == 2)
        bytes = std::min<std::int64_t>(bytes, static_cast<std::int64_t>(w.values().bytes()));
    });
    return bytes;
  }
  // Whether the peaks of all other tags could hide a gradient of a frozen matrix.
  bool could_hold_a_frozen_gradient() const {
    const Ledger& l = backend->ledger();
    return l[Tag::Backward].peak_bytes + l[Tag::Workspace].peak_bytes +
               l[Tag::Activations].peak_bytes + l[Tag::KvCache].peak_bytes >=
           smallest_frozen_matrix();
  }
};

}  // namespace

TEST_CASE("in a training step there is no room for the gradient of any frozen matrix") {
  for (DType dtype : {DType::F32, DType::BF16})
    for (const std::vector<std::string>& targets :
         {std::vector<std::string>{"all-linear"}, {"q_proj", "v_proj"}, {"layers.1.mlp.up_proj"}}) {
      Run run(dtype, targets);
      const Ledger& ledger = run.backend->ledger();
      const std::int64_t weights = ledger[Tag::Weights].live_bytes;
      const std::string before = weights_sha256(run.model->weights());
      run.backend->ledger().reset_peaks();
      for (int i = 0; i < 3; ++i) run.step();
      CHECK(!run.could_hold_a_frozen_gradient());
      // What there is: exactly A's and B's gradients and moments, and one matmul per matrix and
      // micro-batch that contracts over tokens.
      const std::int64_t n = static_cast<std::int64_t>(run.adapter->parameters().size());
      const std::int64_t numel = run.adapter->n_parameters();
      CHECK(ledger[Tag::Gradients].peak_bytes == 4 * numel);
      CHECK(ledger[Tag::Gradients].total_count == n);
      CHECK(ledger[Tag::Optimizer].peak_bytes == 8 * numel);
      CHECK(ledger[Tag::Optimizer].total_count == 2 * n);
      CHECK(run.backend->weight_gradient_matmuls() == 3 * 2 * n);
      // And the base is what was loaded, to the bit.
      CHECK(ledger[Tag::Weights].peak_bytes == weights);
      CHECK(weights_sha256(run.model->weights()) == before);
    }
}

TEST_CASE("the ledger sees a planted gradient of a frozen matrix") {
  Run run(DType::F32, {"q_proj"});
  run.step();
  REQUIRE(!run.could_hold_a_frozen_gradient());
  // What a careless op would do: dw of one frozen projection, freed again at once.
  Backend& backend = *run.backend;
  const Weight& k = run.model->weights().layers[0][Site::K].weight;
  const std::int64_t matmuls = backend.weight_gradient_matmuls();
  {
    Tensor dw = backend.empty(Tag::Backward, DType::F32, k.shape());
    Tensor dy = random_tensor(backend, DType::F32, {3, k.shape()[0]}, 1);
    Tensor x = random_tensor(backend, DType::F32, {3, k.shape()[1]}, 2);
    backend.weight_gradient(dw, GradMode::Write, 1.0, dy, x);
  }
  CHECK(run.could_hold_a_frozen_gradient());
  CHECK(backend.weight_gradient_matmuls() == matmuls + 1);
}
