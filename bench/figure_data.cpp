// figure_data: runs what the figures in docs/figures show and prints it as JSON. tools/figures.py
// keeps the result in docs/figures/data.json and draws from it.
//
// - memory: one training step of SmolLM2's shape on a backend that only keeps the books, which is
//   how the engine plans memory: live bytes of each tag, op by op.
// - tape: forward of a model of two layers, run on the CPU's plain loops: the nodes it records, the
//   shape of each output, and the live bytes of activations once the op has run.
// - joined: the buffer of q, k and v in the first of these steps.
// - ranks: LoRA on a frozen matrix whose target differs from it by a matrix of rank 8, for several
//   ranks: the loss at each step, and the least that this rank can reach.
#include <cmath>
#include <cstdio>
#include <functional>
#include <numbers>

#include "autograd/ops.h"
#include "cpu/cpu_backend_impl.h"
#include "cuda/traits.h"
#include "io/json.h"
#include "lora/adapter.h"
#include "lora/lora_linear.h"
#include "lora/trainer.h"
#include "modelfile/named_shapes.h"
#include "tensor/plan_backend.h"

namespace {

using namespace lk;

// A backend that calls `look` with each op's name before it runs the op.
template <class Base>
class Watched final : public Base {
 public:
  using Base::Base;
  std::function<void(const char*)> look = [](const char*) {};

#define LK_WATCHED(op, parameters, arguments) \
  void op parameters override {               \
    look(#op);                                \
    Base::op arguments;                       \
  }
  LK_BACKEND_OPS(LK_WATCHED)
#undef LK_WATCHED

 protected:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override {
    look("matmul_tn");
    Base::matmul_tn(dw, mode, alpha, a, b);
  }
};

std::int64_t live(const Backend& backend, Tag tag) { return backend.ledger()[tag].live_bytes; }

constexpr std::array kTags = {Tag::Weights,  Tag::Params,    Tag::Activations, Tag::Gradients,
                              Tag::Backward, Tag::Optimizer, Tag::Workspace};

LoraConfig rank(std::int64_t r) {
  LoraConfig config;
  config.shape = {r, static_cast<double>(r), 0};
  config.targets = {"all-linear"};
  return config;
}

// The largest of every few samples, so that at most `most` are left and no peak is lost.
std::vector<std::vector<std::int64_t>> thinned(const std::vector<std::vector<std::int64_t>>& all,
                                               std::size_t most, std::size_t keep) {
  auto total = [](const auto& s) { return std::accumulate(s.begin(), s.end(), std::int64_t{0}); };
  const std::size_t every = (all.size() + most - 1) / most;
  std::vector<std::vector<std::int64_t>> out;
  for (std::size_t i = 0; i < all.size(); i += every) {
    std::size_t best = i;
    for (std::size_t j = i; j < std::min(i + every, all.size()); ++j)
      if (j == keep || (best != keep && total(all[j]) > total(all[best]))) best = j;
    out.push_back(all[best]);
    out.back().insert(out.back().begin(), static_cast<std::int64_t>(best));
  }
  return out;
}

OrderedJson memory_over_a_step(OrderedJson& joined) {
  constexpr std::int64_t kRows = 16, kTokens = 512;
  Watched<PlanBackend> backend(kCudaTraits);
  const ModelConfig config = named_shape("smollm2-135m");
  Transformer model(backend, config, random_weights(backend, config, DType::BF16, 0), DType::BF16,
                    kTokens);
  Adapter adapter(model, rank(16));
  adapter.lay_out_for_training();
  model.visit_joined([&](const JoinedLinear& f) {
    if (!joined.is_null()) return;
    joined = {{"in", f.in}, {"out", f.out}, {"thin", f.thin}, {"parts", OrderedJson::array()}};
    for (const JoinedLinear::Part& p : f.parts)
      joined["parts"].push_back(
          {{"begin", p.begin}, {"end", p.end}, {"column", p.column}, {"rank", p.rank}});
  });
  Trainer trainer(model, adapter, {});
  std::vector<std::vector<std::int64_t>> samples;
  std::size_t loss = 0, update = 0;
  backend.look = [&](const char* op) {
    if (loss == 0 && std::string_view(op) == "cross_entropy") loss = samples.size();
    if (update == 0 && std::string_view(op) == "sum_squares") update = samples.size();
    std::vector<std::int64_t> now;
    for (Tag tag : kTags) now.push_back(live(backend, tag));
    samples.push_back(now);
  };
  trainer.rehearse({{document_offsets(std::vector<std::int64_t>(kRows, kTokens))}});
  backend.look = [](const char*) {};
  OrderedJson tags = OrderedJson::array();
  for (Tag tag : kTags) tags.push_back(tag_name(tag));
  return {{"shape", "smollm2-135m"},
          {"rows", kRows},
          {"tokens", kTokens},
          {"rank", 16},
          {"dtype", "bf16"},
          {"ops", samples.size()},
          {"loss_at", loss},
          {"update_at", update},
          {"peak_bytes", backend.ledger().total().peak_bytes},
          {"tags", tags},
          {"samples", thinned(samples, 240, loss)}};
}

OrderedJson tape_of_two_layers() {
  ModelConfig config = named_shape("smollm2-135m");
  config.n_layers = 2;
  config.vocab_size = 512;  // the loss is not what this figure is about
  Watched<CpuBackend> backend(CpuMode::Reference);
  Transformer model(backend, config, random_weights(backend, config, DType::F32, 0), DType::F32,
                    16);
  Adapter adapter(model, rank(8));
  Row row;
  for (int i = 0; i < 16; ++i) row.ids.push_back(7 * i % 512), row.supervised.push_back(1);
  const std::vector<const Row*> rows{&row};
  const TokenBatch batch = make_batch(backend, rows);
  Tensor scale = backend.empty(Tag::Workspace, DType::F32, {1});
  backend.fill(scale, 1.0 / static_cast<double>(batch.n_supervised));

  Tape tape(backend);
  const std::int64_t before = live(backend, Tag::Activations);
  std::vector<std::int64_t> after;  // of each node: when its last op is called, its output exists
  backend.look = [&](const char*) {
    after.resize(tape.n_nodes() + 1);
    after.back() = live(backend, Tag::Activations) - before;
  };
  const Var loss = model.loss(tape, batch, {1.0, scale, 0}, {true, 0, 0, {}});
  backend.look = [](const char*) {};
  const std::vector<std::string> names = tape.node_names();
  const std::int64_t kept = live(backend, Tag::Activations) - before;
  check(after.size() >= names.size(), "figure_data: fewer ops than nodes");
  OrderedJson nodes = OrderedJson::array();
  for (std::size_t i = 0; i < names.size(); ++i)
    nodes.push_back({{"name", names[i]}, {"live_bytes", after[i]}});
  tape.backward(loss);
  return {{"layers", config.n_layers},
          {"tokens", 16},
          {"width", config.hidden_size},
          {"rank", 8},
          {"dtype", "f32"},
          {"nodes", nodes},
          {"kept_bytes", kept},
          {"bytes_after_backward", live(backend, Tag::Activations) - before}};
}

// loss (1) = sum (y - target)^2. d loss / dy = 2 (y - target).
struct SquaredErrorNode : Node {
  Var y;
  Tensor difference;
  SquaredErrorNode(const Var& value, Tensor d) : y(value), difference(std::move(d)) {}
  const char* name() const override { return "squared_error"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink to = tape.sink(y)) tape.backend().scale(to.tensor, to.mode, 2.0, dy, difference);
  }
};

Var squared_error(Tape& tape, const Var& y, const Tensor& target) {
  Backend& backend = tape.backend();
  Tensor difference = tape.activation(y.dtype(), y.value().shape());
  Tensor loss = tape.activation(DType::F32, {1});
  backend.scale(difference, GradMode::Write, -1.0, {}, target);
  backend.add(difference, y.value(), difference);
  backend.sum_squares(loss, std::array{difference});
  if (!tape.wants(y)) return tape.constant(loss);
  return tape.record<SquaredErrorNode>(loss, y, difference);
}

// Every input is a unit vector, so the loss is |W + s B A - (W + D)|^2 over all elements. D has the
// singular values 1, 2^-1/2, 2^-1, ...: their squares halve. By Eckart and Young a matrix of rank r
// can't come closer to D than the sum of the squares that follow the r-th.
OrderedJson loss_by_rank() {
  constexpr std::int64_t kSize = 64, kPlanted = 8, kSteps = 300;
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto direction = [](std::int64_t i, std::int64_t k) {  // orthonormal in i: a cosine transform
    return std::sqrt(2.0 / kSize) * std::cos(std::numbers::pi / kSize * (k + 0.5) * (i + 1.0));
  };
  std::vector<float> x(kSize * kSize, 0.0f), w(kSize * kSize), target(kSize * kSize);
  for (std::int64_t n = 0; n < kSize; ++n) x[static_cast<std::size_t>(n * kSize + n)] = 1.0f;
  for (std::int64_t n = 0; n < kSize; ++n)
    for (std::int64_t k = 0; k < kSize; ++k) {
      double d = 0;
      for (std::int64_t i = 0; i < kPlanted; ++i)
        d += std::pow(0.5, 0.5 * i) * direction(i, n) * direction(2 * i, k);
      const float frozen = 0.1f * static_cast<float>(std::sin(1.0 + n * kSize + k));
      w[static_cast<std::size_t>(n * kSize + k)] = frozen;
      target[static_cast<std::size_t>(k * kSize + n)] = frozen + static_cast<float>(d);
    }
  auto on_device = [&](Tag tag, const std::vector<float>& values) {
    Tensor t = backend->empty(tag, DType::F32, {kSize, kSize});
    upload_rounded(*backend, t, values);
    return t;
  };
  const Tensor inputs = on_device(Tag::Workspace, x), targets = on_device(Tag::Workspace, target);
  Weight frozen("w", on_device(Tag::Weights, w));
  backend->prepare_linear(frozen);

  OrderedJson runs = OrderedJson::array();
  for (std::int64_t r : {1, 2, 4, 8}) {
    LoraLinear layer(*backend, "layer", 0, std::make_unique<FrozenLinear>(frozen, Weight()),
                     {r, static_cast<double>(r), 0}, 1, DType::F32);
    AdamW optimizer(layer.parameters(), {});
    OrderedJson losses = OrderedJson::array();
    for (std::int64_t step = 0; step <= kSteps; ++step) {
      for (Parameter* p : layer.parameters()) p->zero_grad();
      Tape tape(*backend);
      const Var loss =
          squared_error(tape, layer.apply(tape, Var(inputs), {true, 0, 0, {}}), targets);
      const double value = to_host<float>(loss.value())[0];
      if (step % 3 == 0) losses.push_back(std::stod(concat(static_cast<float>(value))));
      tape.backward(loss);
      const float rate = 0.006f * static_cast<float>(kSteps - step) / kSteps;
      optimizer.step(rate, 0, optimizer.grad_norm_sq());
    }
    double least = 0;
    for (std::int64_t i = r; i < kPlanted; ++i) least += std::pow(0.5, i);
    runs.push_back({{"rank", r}, {"least", least}, {"losses", losses}});
  }
  return {{"size", kSize}, {"planted", kPlanted}, {"every", 3}, {"runs", runs}};
}

}  // namespace

int main() {
  try {
    OrderedJson joined;
    const OrderedJson memory = memory_over_a_step(joined);
    const OrderedJson data = {{"memory", memory},
                              {"tape", tape_of_two_layers()},
                              {"joined", joined},
                              {"ranks", loss_by_rank()}};
    std::printf("%s\n", data.dump().c_str());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "figure_data: %s\n", e.what());
    return 1;
  }
}
