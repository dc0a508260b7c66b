// Training end to end on a tiny model: would catch a wrong divisor under accumulation, a gradient
// that leaks between rows, an optimizer that misses a parameter, a resume that is not exact.
#include <algorithm>
#include <array>
#include <set>

#include "cpu/cpu_backend_impl.h"
#include "io/json.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "modelfile/weight_hash.h"
#include "replaying_backend.h"
#include "run/checkpoint.h"
#include "scratch_folder.h"
#include "text/sampler.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

TrainerConfig tiny_training(std::int64_t steps) {
  TrainerConfig c;
  c.schedule = {ScheduleKind::Cosine, 0.02, 2, steps};
  c.seed = 5;
  return c;
}

// A device that finishes nothing until it is asked for the value.
class LateBackend : public CpuBackend {
 public:
  LateBackend() : CpuBackend(CpuMode::Fast) {}
  std::unique_ptr<Readback> read_later(const Tensor& x) override {
    struct Late : Readback {
      std::unique_ptr<Readback> inner;
      bool done() const override { return false; }
      double value(std::size_t i) override { return inner->value(i); }
    };
    auto late = std::make_unique<Late>();
    late->inner = CpuBackend::read_later(x);
    return late;
  }
};

// All gradients of one step over the given micro-batches, without an update.
std::vector<double> gradients(Transformer& model, Adapter& adapter,
                              const std::vector<std::vector<const Row*>>& micro) {
  std::int64_t n = 0;
  for (const auto& rows : micro)
    for (const Row* row : rows) n += row->n_supervised();
  adapter.zero_grad();
  for (const auto& rows : micro) {
    Tape tape(model.backend());
    TokenBatch batch = make_batch(model.backend(), rows);
    tape.backward(model.loss(tape, batch, 1.0 / static_cast<double>(n), {}));
  }
  std::vector<double> all;
  for (const Parameter* p : adapter.parameters())
    for (double g : to_host_f64(p->grad())) all.push_back(g);
  return all;
}

// A step of one micro-batch.
std::vector<std::vector<const Row*>> one_batch(const std::vector<Row>& rows, std::size_t begin = 0,
                                               std::size_t end = SIZE_MAX) {
  return {pointers(rows, begin, end)};
}

double relative(const std::vector<double>& a, const std::vector<double>& b) {
  double diff = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    diff += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(diff / norm);
}

std::vector<std::vector<float>> values(const Adapter& adapter) {
  std::vector<std::vector<float>> v;
  for (const Parameter* p : adapter.parameters()) v.push_back(to_host<float>(p->value()));
  return v;
}

}  // namespace

TEST_CASE("a custom loss, on the host: cross-entropy written there trains as ours does") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  const std::vector<Row> rows = random_rows({9, 14, 5}, 8);
  auto train = [&](LossFunction own) {
    auto model = tiny_transformer(*backend, DType::F64);
    Adapter adapter(*model, tiny_lora());
    TrainerConfig config = tiny_training(4);
    config.loss = std::move(own);
    Trainer trainer(*model, adapter, config);
    std::vector<double> seen;
    for (int i = 0; i < 4; ++i) {
      // Two micro-batches: their losses add up.
      const StepReport r = trainer.step({{pointers(rows, 0, 2), pointers(rows, 2, 3)}});
      seen.push_back(r.loss);
      seen.push_back(r.grad_norm);
    }
    return seen;
  };
  int calls = 0;
  const auto own = train(loss_on_host([&](const LossRows& in) {
    ++calls;
    double loss = 0;
    for (std::size_t i = 0; i < in.targets.size(); ++i) {
      auto x = in.logits_of(i);
      auto dx = in.gradient_of(i);
      double sum = 0;
      for (double v : x) sum += std::exp(v);
      const auto target = static_cast<std::size_t>(in.targets[i]);
      loss += in.scale * (std::log(sum) - x[target]);
      for (std::size_t v = 0; v < x.size(); ++v)
        dx[v] = in.scale * (std::exp(x[v]) / sum - (v == target));
    }
    return loss;
  }));
  CHECK(calls == 8);
  const auto ours = train({});
  // Everything is F64 except A, B and the optimizer, which are F32 masters of equal values.
  for (std::size_t i = 0; i < ours.size(); ++i)
    CHECK_MESSAGE(std::abs(own[i] - ours[i]) < 1e-6 * ours[i], own[i], " ", ours[i]);
  CHECK_THROWS_AS(loss_on_host({}), UsageError);
  CHECK_THROWS_AS(train([](Tape&, const Var& logits, const TokenBatch&, double) { return logits; }),
                  Error);
}

TEST_CASE("accumulation 1x8 = 2x4 = 8x1 with unequal rows, F64, to 1e-12") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  Adapter adapter(*model, tiny_lora());
  randomize_b(adapter, 21);
  std::vector<Row> rows = random_rows({3, 40, 7, 101, 12, 5, 64, 23}, 8);
  auto split = [&](std::size_t size) {
    std::vector<std::vector<const Row*>> micro;
    for (std::size_t i = 0; i < rows.size(); i += size)
      micro.push_back(pointers(rows, i, i + size));
    return micro;
  };
  std::vector<double> whole = gradients(*model, adapter, split(8));
  CHECK(relative(gradients(*model, adapter, split(4)), whole) < 1e-12);
  CHECK(relative(gradients(*model, adapter, split(1)), whole) < 1e-12);
}

TEST_CASE("packed rows: loss and gradients are those of the rows one at a time, F64, to 1e-12") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  Adapter adapter(*model, tiny_lora());
  randomize_b(adapter, 21);
  std::vector<Row> rows = random_rows({3, 40, 7, 61, 12, 5, 64, 23, 30, 9}, 8);
  std::vector<std::int64_t> lengths;
  std::vector<std::vector<const Row*>> packed, alone;
  for (const Row& row : rows) lengths.push_back(std::ssize(row.ids));
  const Sampler sampler(lengths, 64, 2, true, 6);
  REQUIRE(sampler.bins_per_epoch() == 4);
  for (std::int64_t i = 0; i < 2; ++i) {
    packed.emplace_back();
    for (std::int64_t row : sampler.batch(i)) {
      packed.back().push_back(&rows[static_cast<std::size_t>(row)]);
      alone.push_back({packed.back().back()});
    }
  }
  REQUIRE(alone.size() == rows.size());
  CHECK(relative(gradients(*model, adapter, packed), gradients(*model, adapter, alone)) < 1e-12);
  TrainerConfig still;  // a learning rate of zero: both steps start from the same weights
  still.schedule.lr = 0;
  const StepReport together = Trainer(*model, adapter, still).step(packed);
  const StepReport one_by_one = Trainer(*model, adapter, still).step(alone);
  CHECK(together.tokens == one_by_one.tokens);
  CHECK(std::abs(together.loss - one_by_one.loss) < 1e-12 * one_by_one.loss);
  CHECK(std::abs(together.grad_norm - one_by_one.grad_norm) < 1e-12 * one_by_one.grad_norm);
}

TEST_CASE("padded sizes are few, never smaller, and at most a sixteenth more tokens") {
  BatchSize before;
  std::set<std::int64_t> tokens, documents, supervised;
  for (std::int64_t n = 1; n <= 5000; ++n) {
    const BatchSize size{n, 1 + n / 40, n / 3}, to = padded_size(std::array{size});
    CHECK((to.tokens >= size.tokens && to.documents >= size.documents &&
           to.supervised >= size.supervised && to.supervised <= to.tokens));
    CHECK(to.tokens <= size.tokens + std::max<std::int64_t>(63, size.tokens / 16));
    CHECK((to.supervised == 0) == (size.supervised == 0));
    CHECK(to.tokens % 64 == 0);
    CHECK((to.tokens >= before.tokens && to.supervised >= before.supervised));
    before = to;
    tokens.insert(to.tokens), documents.insert(to.documents), supervised.insert(to.supervised);
  }
  CHECK(tokens.size() < 60);
  CHECK(documents.size() < 25);
  CHECK(supervised.size() < 25);
  // Whole rows need no padding.
  CHECK(padded_size(std::array{BatchSize{8192, 8, 8184}}) == BatchSize{8192, 8, 8192});
  // Batches of one step share a size: 480 tokens are 512, of which the short rows of the second
  // batch need 2 + 502 / 5 documents, so 112 in quarters of a power of two.
  CHECK(padded_size(std::array{BatchSize{480, 8, 200}, BatchSize{10, 2, 8}}) ==
        BatchSize{512, 112, 256});
}

TEST_CASE("a padded batch keeps its tokens, and has its size") {
  const std::vector<Row> rows = random_rows({9, 70, 3, 14}, 4);
  HostBatch batch = make_host_batch(pointers(rows));
  const HostBatch plain = batch;
  const BatchSize to = padded_size(std::array{size_of(batch)});
  pad_batch(batch, to);
  CHECK(size_of(batch) == to);
  auto starts_with = [](const auto& whole, const auto& part) {
    return std::equal(part.begin(), part.end(), whole.begin());
  };
  CHECK(starts_with(batch.ids, plain.ids));
  CHECK(starts_with(batch.positions, plain.positions));
  CHECK(starts_with(batch.offsets, plain.offsets));
  CHECK(starts_with(batch.rows, plain.rows));
  CHECK(starts_with(batch.targets, plain.targets));
  CHECK(batch.offsets.back() == to.tokens);
  CHECK(std::is_sorted(batch.offsets.begin(), batch.offsets.end()));
  for (std::size_t i = plain.offsets.size(); i < batch.offsets.size(); ++i)
    CHECK(batch.offsets[i] - batch.offsets[i - 1] <= 70);  // no document longer than there was
  CHECK(std::set(batch.rows.begin(), batch.rows.end()).size() == batch.rows.size());
  for (std::size_t i = plain.targets.size(); i < batch.targets.size(); ++i)
    CHECK(batch.targets[i] == kNoTarget);
  HostBatch small = plain;
  CHECK_THROWS_AS(pad_batch(small, {to.tokens, 4, to.supervised}), Error);  // no room to add
  CHECK_THROWS_AS(pad_batch(small, {64, to.documents, to.supervised}), Error);
}

TEST_CASE("padding changes no loss, gradient or trained weight") {
  struct Way {
    CpuMode mode;
    DType dtype;
    double bound;  // of relative differences; 0: the same bits
  };
  // Where sums over tokens are plain loops, zeros at their end change nothing. Blocked and threaded
  // sums are cut at other places: some roundings of the dtype in which gradients are computed.
  for (Way way : {Way{CpuMode::Reference, DType::F64, 0}, Way{CpuMode::Reference, DType::F32, 0},
                  Way{CpuMode::Fast, DType::F32, 1e-5}, Way{CpuMode::Fast, DType::BF16, 2e-2}}) {
    CAPTURE(std::string(dtype_name(way.dtype)));
    auto backend = make_cpu_backend(way.mode);
    // The first micro-batch needs no tokens and gets an empty document, the second gets both.
    const std::vector<Row> rows = random_rows({9, 70, 3, 14, 33, 2, 61, 50, 14, 40, 12}, 4);
    auto train = [&](bool pad) {
      auto model = tiny_transformer(*backend, way.dtype);
      Adapter adapter(*model, tiny_lora());
      randomize_b(adapter, 21);
      TrainerConfig config = tiny_training(3);
      config.pad = pad;
      Trainer trainer(*model, adapter, config);
      std::vector<double> losses, all;
      for (int i = 0; i < 3; ++i) {
        const StepReport r = trainer.step({{pointers(rows, 0, 9), pointers(rows, 9, 11)}});
        CHECK(r.tokens == 308);  // those of the rows
        CHECK(r.supervised_tokens == make_host_batch(pointers(rows)).n_supervised());
        losses.push_back(r.loss), all.push_back(r.grad_norm);
      }
      for (const Parameter* p : adapter.parameters())
        for (double g : to_host_f64(p->grad())) all.push_back(g);
      for (const Parameter* p : adapter.parameters())
        for (double v : to_host_f64(p->value())) all.push_back(v);
      return std::pair(losses, all);
    };
    const auto [plain_losses, plain] = train(false);
    const auto [padded_losses, padded] = train(true);
    // A sum of losses is made in lanes, whose number is the processor's: zeros move its remainder.
    CHECK(relative(padded_losses, plain_losses) < std::max(way.bound, 1e-14));
    if (way.bound == 0)
      CHECK(padded == plain);
    else
      CHECK(relative(padded, plain) < way.bound);
  }
}

TEST_CASE("documents in one batch do not see each other") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  std::vector<Row> rows = random_rows({11, 19}, 4);
  TokenBatch together = make_batch(*backend, pointers(rows));
  std::vector<double> before = to_host_f64(model->logits(together).slice_rows(11, 30));
  rows[0].ids[5] = (rows[0].ids[5] + 1) % 61;
  TokenBatch changed = make_batch(*backend, pointers(rows));
  CHECK(to_host_f64(model->logits(changed).slice_rows(11, 30)) == before);  // bit for bit
  TokenBatch alone = make_batch(*backend, pointers(rows, 1));
  check_close(to_host_f64(model->logits(alone)), before, 1e-12, {1e-12}, "alone");
}

TEST_CASE("a tiny model overfits one batch and the proof holds") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto backend = make_cpu_backend();
    {
      auto model = tiny_transformer(*backend, dtype);
      const std::int64_t weights = backend->ledger()[Tag::Weights].live_bytes;
      const std::string before = weights_sha256(model->weights());
      Adapter adapter(*model, tiny_lora());
      Trainer trainer(*model, adapter, tiny_training(100));
      std::vector<Row> rows = random_rows({20, 9, 14}, 2);
      std::vector<std::vector<const Row*>> micro{pointers(rows, 0, 2), pointers(rows, 2)};
      std::int64_t driver = 0;
      double first = 0, last = 0;
      for (int i = 0; i < 100; ++i) {
        StepReport r = trainer.step(micro);
        if (i == 0) first = r.loss;
        if (i == 1) driver = backend->cache().driver_allocations();
        last = r.loss;
        CHECK(!r.skipped);
      }
      // Rows of the random head have norm 0.1 and hidden states norm 4.9, so no adapter can bring
      // the loss of 61 words below 4.11 - 0.48: this is most of the way there.
      CHECK(first > 4.0);
      CHECK(last < 3.72);
      CHECK(trainer.unmoved().empty());
      CHECK(backend->cache().driver_allocations() == driver);  // none after step 2
      CHECK(weights_sha256(model->weights()) == before);
      CHECK(backend->weight_gradient_matmuls() == 100 * 2 * 28);
      CHECK_NOTHROW(prove_memory(*backend, adapter, weights, 100 * 2 * 28, 200));
      CHECK_THROWS_WITH_AS(prove_memory(*backend, adapter, weights, 100 * 2 * 28 + 1, 200),
                           doctest::Contains("weight-gradient matmuls"), Error);
      CHECK_THROWS_AS(prove_memory(*backend, adapter, weights - 1, 100 * 2 * 28, 200), Error);
    }
    for (int tag = 0; tag < kTagCount; ++tag)
      CHECK(backend->ledger()[static_cast<Tag>(tag)].live_bytes == 0);
  }
}

TEST_CASE("same seed, same bytes; dropout included") {
  std::vector<std::vector<std::vector<float>>> results;
  for (int run = 0; run < 2; ++run) {
    auto backend = make_cpu_backend();
    auto model = tiny_transformer(*backend, DType::F32);
    LoraConfig lora = tiny_lora();
    lora.shape.dropout = 0.2f;
    Adapter adapter(*model, lora);
    Trainer trainer(*model, adapter, tiny_training(10));
    std::vector<Row> rows = random_rows({20, 9, 14, 33}, 2);
    for (int i = 0; i < 5; ++i) trainer.step(one_batch(rows));
    results.push_back(values(adapter));
  }
  CHECK(results[0] == results[1]);
}

TEST_CASE("resume is exact: stop after 3 of 6 steps, go on, compare every bit") {
  const ScratchFolder scratch;
  const std::string& folder = scratch.path();
  std::vector<Row> rows = random_rows({20, 9, 14, 33, 5, 8}, 2);
  Json identity = {{"rank", 4}, {"data_sha256", "abc"}, {"steps", 6}};
  LoraConfig lora = tiny_lora();
  lora.shape.dropout = 0.1f;
  auto backend = make_cpu_backend();
  auto one_step = [&](Trainer& t) {
    std::size_t i = static_cast<std::size_t>(t.steps_done()) % 5;
    return t.step(one_batch(rows, i, i + 2)).loss;
  };
  std::vector<double> losses;
  std::vector<std::vector<float>> final_values;
  {
    auto model = tiny_transformer(*backend, DType::F32);
    Adapter adapter(*model, lora);
    Trainer trainer(*model, adapter, tiny_training(6));
    for (int i = 0; i < 6; ++i) {
      if (i == 3) save_checkpoint(folder, adapter, trainer, identity, {.first_loss = losses[0]});
      losses.push_back(one_step(trainer));
    }
    final_values = values(adapter);
  }
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, lora);
  Trainer trainer(*model, adapter, tiny_training(6));
  const Checkpoint checkpoint(folder);
  CHECK(checkpoint.identity() == identity);
  CHECK(checkpoint.progress().first_loss == losses[0]);
  checkpoint.restore(adapter, trainer);
  CHECK(trainer.steps_done() == 3);
  for (std::size_t i = 3; i < 6; ++i) CHECK(one_step(trainer) == losses[i]);
  CHECK(values(adapter) == final_values);

  // Sums that are right prove nothing of numbers that can't be.
  auto refused = [&](const char* what) {
    save_checkpoint(folder, adapter, trainer, identity, {});
    CHECK_THROWS_WITH_AS(Checkpoint{folder}, doctest::Contains(what), InputError);
  };
  trainer.resume_at(7, 7);
  refused("7 steps of 6");
  trainer.resume_at(3, 5);
  refused("5 micro-batches");
  trainer.resume_at(3, 3);
  backend->fill(trainer.optimizer().moment_v(1), -1);
  refused("can't be");
  LoraConfig narrow = lora;
  narrow.shape.rank = 2;
  auto other_model = tiny_transformer(*backend, DType::F32);
  Adapter other(*other_model, narrow);
  Trainer other_trainer(*other_model, other, tiny_training(6));
  CHECK_THROWS_WITH_AS(checkpoint.restore(other, other_trainer), doctest::Contains("expected"),
                       InputError);
}

TEST_CASE("recorded steps read each batch where the recording was made, and give launched bits") {
  auto train = [](bool record, std::vector<bool>& recorded) {
    ReplayingBackend backend;
    auto model = tiny_transformer(backend, DType::F32);
    LoraConfig lora = tiny_lora();
    lora.shape.dropout = 0.2f;
    Adapter adapter(*model, lora);
    TrainerConfig config = tiny_training(8);
    config.record = record;
    Trainer trainer(*model, adapter, config);
    CHECK(trainer.why_not_recorded().empty() == record);
    std::vector<double> numbers;
    // Two sizes: (60 tokens, 9) and (200, 9), other tokens in each step.
    for (unsigned i = 0; i < 8; ++i) {
      const std::vector<Row> rows = random_rows({i == 3 || i == 5 ? 200 : 60, 9}, i);
      const StepReport r = trainer.step({{pointers(rows, 0, 1), pointers(rows, 1, 2)}});
      recorded.push_back(r.recorded);
      numbers.push_back(r.loss), numbers.push_back(r.grad_norm);
      CHECK(r.tokens == std::ssize(rows[0].ids) + 9);
    }
    CHECK(backend.recorded == (record ? 2 : 0));
    return std::pair(numbers, values(adapter));
  };
  std::vector<bool> with, without;
  CHECK(train(true, with) == train(false, without));
  CHECK(with == std::vector{false, true, true, false, true, true, true, true});
  CHECK(without == std::vector<bool>(8, false));
}

TEST_CASE("a step that is not finite changes nothing; three in a row end the run") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  Trainer trainer(*model, adapter, tiny_training(10));
  std::vector<Row> rows = random_rows({20, 9}, 2);
  CHECK(!trainer.step(one_batch(rows)).skipped);
  Parameter& a = adapter.layers()[3]->a();
  backend->fill(a.value(), std::nan(""));
  auto before = to_host<float>(adapter.layers()[0]->b().value());
  CHECK(trainer.step(one_batch(rows)).skipped);
  CHECK(to_host<float>(adapter.layers()[0]->b().value()) == before);
  CHECK(trainer.step(one_batch(rows)).skipped);
  CHECK_THROWS_WITH_AS(trainer.step(one_batch(rows)), doctest::Contains("lora_"), NonFiniteError);
}

TEST_CASE("fewer than three steps of which none is finite can be made the run's end, too") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  Trainer trainer(*model, adapter, tiny_training(10));
  std::vector<Row> rows = random_rows({20, 9}, 2);
  CHECK_NOTHROW(trainer.check_any_finite());
  Parameter& a = adapter.layers()[3]->a();
  const auto good = to_host<float>(a.value());
  backend->fill(a.value(), std::nan(""));
  CHECK(trainer.step(one_batch(rows)).skipped);
  CHECK_THROWS_WITH_AS(trainer.check_any_finite(),
                       doctest::Contains("step 1: 1 step was not finite"), NonFiniteError);
  CHECK_THROWS_WITH_AS(trainer.check_any_finite(), doctest::Contains("lora_"), NonFiniteError);
  backend->upload(a.value(), good.data(), good.size() * sizeof(float));
  CHECK(!trainer.step(one_batch(rows)).skipped);
  backend->fill(a.value(), std::nan(""));
  CHECK(trainer.step(one_batch(rows)).skipped);
  CHECK_NOTHROW(trainer.check_any_finite());
  // Nor does a run end so whose steps before a checkpoint were finite.
  Trainer resumed(*model, adapter, tiny_training(10));
  resumed.resume_at(3, 3);
  CHECK(resumed.step(one_batch(rows)).skipped);
  CHECK_NOTHROW(resumed.check_any_finite());
}

TEST_CASE("reports lag by one step at most, and are those of steps waited for one by one") {
  std::vector<Row> rows = random_rows({20, 9, 14, 33, 5, 8}, 2);
  auto batch = [&](std::size_t i) {
    return std::vector{make_host_batch(pointers(rows, i, i + 2))};
  };
  std::vector<StepReport> want, got;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  Trainer trainer(*model, adapter, tiny_training(5));
  for (std::size_t i = 0; i < 5; ++i) {
    trainer.submit(batch(i));  // the CPU is done at once, so there is no lag
    want.push_back(*trainer.next_report(false));
    CHECK(!trainer.next_report(true));
  }
  LateBackend late;
  auto late_model = tiny_transformer(late, DType::F32);
  Adapter late_adapter(*late_model, tiny_lora());
  Trainer ahead(*late_model, late_adapter, tiny_training(5));
  for (std::size_t i = 0; i < 5; ++i) {
    ahead.submit(batch(i));
    while (auto report = ahead.next_report(i == 2)) got.push_back(*report);
    CHECK(got.size() == (i < 2 ? i : i == 2 ? 3 : i));
  }
  CHECK_THROWS_AS(ahead.step(batch(0)), Error);  // a report is missing
  while (auto report = ahead.next_report(true)) got.push_back(*report);
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(got[i].step == want[i].step);
    CHECK(got[i].loss == want[i].loss);
    CHECK(got[i].grad_norm == want[i].grad_norm);
    CHECK(got[i].lr == want[i].lr);
    CHECK(got[i].tokens == want[i].tokens);
    CHECK(got[i].seconds > 0);
  }
  CHECK(values(late_adapter) == values(adapter));
}

TEST_CASE("bad steps end the run at the third, also where reports lag") {
  LateBackend backend;
  auto model = tiny_transformer(backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  Trainer trainer(*model, adapter, tiny_training(10));
  std::vector<Row> rows = random_rows({20, 9}, 2);
  const std::vector<HostBatch> batch{make_host_batch(pointers(rows))};
  backend.fill(adapter.layers()[3]->a().value(), std::nan(""));
  std::int64_t reported = 0;
  auto go_on = [&] {
    for (int i = 0; i < 10; ++i) {
      trainer.submit(batch);
      while (auto report = trainer.next_report(false)) ++reported;
    }
  };
  CHECK_THROWS_WITH_AS(go_on(), doctest::Contains("lora_"), NonFiniteError);
  CHECK(reported == 2);
  CHECK(trainer.steps_done() == 3);  // none was submitted after it
}
