// A step of several processes against its definitions: the gradients of its micro-batches, each computed
// alone, added in their order; or, with fast_reduce, what each process adds in place, in the order of the
// processes. Here each process is a thread with a device of its own.
#include <omp.h>

#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "dist/shared_step.h"
#include "lora/trainer.h"
#include "parity.h"
#include "process_threads.h"
#include "replaying_backend.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

constexpr double kClip = 0.5;
constexpr std::int64_t kMicroStepsDone = 100;  // before this step: keys dropout

// Five micro-batches of different sizes, one of which has nothing to learn from.
std::vector<HostBatch> micro_batches(const std::vector<Row>& rows) {
  std::vector<HostBatch> all;
  for (std::size_t i = 0; i < rows.size(); i += 2)
    all.push_back(make_host_batch(std::vector<const Row*>{&rows[i], &rows[i + 1]}));
  return all;
}

std::vector<Row> step_rows() {
  std::vector<Row> rows = random_rows({9, 17, 30, 4, 8, 8, 21, 5, 13, 40}, 3);
  for (std::size_t i : {4, 5}) std::fill(rows[i].supervised.begin(), rows[i].supervised.end(), 0);
  return rows;
}

// `n` micro-batches of different sizes, each of which has something to learn from.
std::vector<Row> rows_of(std::size_t n) {
  const std::vector<int> lengths = {9, 17, 30, 4, 8, 8, 21, 5, 13, 40, 6, 26};
  return random_rows({lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(2 * n)}, 3);
}

// A model, its adapter and a step on a device of their own: process `rank` of `size`.
struct Process {
  Transport* transport = nullptr;
  int rank = 0, size = 1;
  SharedStep::Settings settings;
  std::vector<HostBatch> batches;
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> model = tiny_transformer(*backend, DType::F32);
  Adapter adapter{*model,
                  {.shape = {.rank = 4, .alpha = 7, .dropout = 0.2f}, .targets = {"all-linear"}}};
  SharedStep shared{*model, adapter, transport, rank, size, settings};
  AdamW optimizer{adapter.parameters(), {}, {}, shared.own_slices()};
  TrainStep train_step{*model, adapter, optimizer, {.clip = kClip, .seed = 11}};
  std::vector<BatchSize> sizes;
  std::int64_t supervised = 0;
  StepTensors step;

  explicit Process(const std::vector<Row>& rows, Transport* with = nullptr, int r = 0, int n = 1,
                   const SharedStep::Settings& of = {.clip = kClip})
      : transport(with), rank(r), size(n), settings(of), batches(micro_batches(rows)) {
    omp_set_num_threads(1);
    for (const HostBatch& b : batches) sizes.push_back(size_of(b)), supervised += b.n_supervised();
    step = train_step.make_tensors(sizes);
    train_step.upload(step, batches, supervised, kMicroStepsDone);
  }
  StepTensors run() {
    StepParts::StepRecorder recorder(*backend, false, {});
    const auto upload = [&](StepTensors& part, std::size_t first) {
      train_step.upload(part, std::span(batches).subspan(first, part.micro_batches.size()),
                        supervised, kMicroStepsDone + static_cast<std::int64_t>(first));
    };
    StepParts parts(train_step, recorder, sizes, upload);
    return shared.run(parts, optimizer);
  }
  std::vector<std::vector<float>> gradients() const {
    std::vector<std::vector<float>> all;
    for (const Parameter* p : adapter.parameters()) all.push_back(to_host<float>(p->grad()));
    return all;
  }
  std::vector<std::vector<float>> values() const {
    std::vector<std::vector<float>> all;
    for (const Parameter* p : adapter.parameters()) all.push_back(to_host<float>(p->value()));
    return all;
  }
};

struct Sum {
  std::vector<std::vector<float>> gradients;
  float loss = 0;
};

// Micro-batches whose gradients are added in place.
using Groups = std::vector<std::vector<std::size_t>>;

// The sums of the groups, each made in place, added in their order.
Sum by_definition(const std::vector<Row>& rows, const Groups& groups) {
  Process p(rows);
  Sum sum;
  for (const auto& group : groups) {
    p.adapter.zero_grad();
    float loss = 0;
    for (std::size_t i : group) {
      Tape tape(*p.backend);
      const Var share = p.train_step.loss(tape, p.step.micro_batches[i], p.step, i);
      tape.backward(share);
      loss += to_host<float>(share.value())[0];
    }
    const auto one = p.gradients();
    if (&group == &groups[0]) {
      sum = {one, loss};
      continue;
    }
    sum.loss += loss;
    for (std::size_t k = 0; k < one.size(); ++k)
      for (std::size_t j = 0; j < one[k].size(); ++j) sum.gradients[k][j] += one[k][j];
  }
  return sum;
}

struct Result {
  Sum sum;
  std::vector<std::vector<float>> values;
  std::int64_t micro_steps = 0;
};

// What each of `size` processes has of a step on these rows.
std::vector<Result> step_on(const std::vector<Row>& rows, int size,
                            const SharedStep::Settings& settings) {
  std::vector<Result> results(static_cast<std::size_t>(size));
  run_processes(size, [&](int rank, Transport& transport) {
    Process p(rows, &transport, rank, size, settings);
    p.optimizer.begin_step(0.01f);
    const StepTensors step = p.run();
    p.shared.gather_gradients();
    results[static_cast<std::size_t>(rank)] = {
        {p.gradients(), to_host<float>(step.loss)[0]}, p.values(), p.shared.micro_steps()};
  });
  return results;
}

}  // namespace

TEST_CASE("the gradient of a step of several processes is the sum of its micro-batches' in order") {
  const Sum want = by_definition(step_rows(), {{0}, {1}, {3}, {4}});
  std::vector<std::vector<float>> updated;  // by the first
  for (const std::int64_t chunk : {SharedStep::kChunk, std::int64_t{1000}})
    for (int size : {1, 2, 3, 4, 6}) {
      CAPTURE(size);
      CAPTURE(chunk);
      std::int64_t micro_steps = 0;
      for (const Result& result : step_on(step_rows(), size, {.clip = kClip, .chunk = chunk})) {
        CHECK(result.sum.gradients == want.gradients);
        CHECK(result.sum.loss == want.loss);
        if (updated.empty()) updated = result.values;
        CHECK(result.values == updated);
        micro_steps += result.micro_steps;
      }
      CHECK(micro_steps == 4);
    }
}

TEST_CASE("with fast_reduce it is the sum of what each process adds in place, in their order") {
  for (const std::size_t n : {6u, 5u, 2u, 1u}) {
    const std::vector<Row> rows = rows_of(n);
    Groups alone;
    for (std::size_t i = 0; i < n; ++i) alone.push_back({i});
    const Sum in_order = by_definition(rows, alone);
    std::vector<std::vector<double>> magnitude;  // of each number: the sum of what is added
    for (const auto& group : alone) {
      const Sum one = by_definition(rows, {group});
      magnitude.resize(one.gradients.size());
      for (std::size_t k = 0; k < magnitude.size(); ++k) {
        magnitude[k].resize(one.gradients[k].size());
        for (std::size_t j = 0; j < magnitude[k].size(); ++j)
          magnitude[k][j] += std::abs(one.gradients[k][j]);
      }
    }
    for (const std::size_t size : {1u, 2u, 3u}) {
      CAPTURE(n);
      CAPTURE(size);
      Groups of_processes(std::min(size, n));
      for (std::size_t i = 0; i < n; ++i) of_processes[i % size].push_back(i);
      const Sum want = by_definition(rows, of_processes);
      const auto processes = static_cast<int>(size);
      const SharedStep::Settings fast{.clip = kClip, .fast_reduce = true, .chunk = 1000};
      const std::vector<Result> results = step_on(rows, processes, fast),
                                again = step_on(rows, processes, fast),
                                other = step_on(rows, processes, {.clip = kClip, .chunk = 1000});
      for (std::size_t r = 0; r < size; ++r) {
        CHECK(results[r].sum.gradients == want.gradients);
        CHECK(results[r].sum.loss == want.loss);
        CHECK(results[r].values == results[0].values);
        CHECK(again[r].values == results[0].values);
        CHECK(results[r].micro_steps == other[r].micro_steps);
      }
      const bool one_each = n <= size;
      CHECK((want.gradients == in_order.gradients) == one_each);
      if (one_each) {
        CHECK(want.loss == in_order.loss);
        CHECK(results[0].values == other[0].values);
      }
      // Either order rounds a micro-batch's gradient and each of its n - 1 sums once, and a sum in place
      // may round once more: its product times the scale.
      const double roundings = static_cast<double>(3 * n);
      double worst = 0;
      for (std::size_t k = 0; k < magnitude.size(); ++k)
        for (std::size_t j = 0; j < magnitude[k].size(); ++j) {
          const double off = std::abs(double{want.gradients[k][j]} - in_order.gradients[k][j]);
          if (off > 0) worst = std::max(worst, off / (magnitude[k][j] * 0x1p-24));
        }
      CHECK(worst <= roundings);
    }
  }
}

namespace {

struct Trained {
  std::vector<std::vector<float>> values;
  std::vector<double> numbers;  // loss and norm of each step
  std::vector<bool> recorded;   // each step
};

// Trains seven steps of `n_micro` micro-batches, each with other tokens, on processes with a device of
// their own, and returns what the first of them has. In steps 2 and 4 the batches are larger; a step's
// second has nothing to learn from.
Trained train(int size, int n_micro, bool record, bool fast, const LoraShape& lora, DType dtype,
              const std::function<std::unique_ptr<Backend>()>& open) {
  std::vector<Trained> all(static_cast<std::size_t>(size));
  run_processes(size, [&](int rank, Transport& transport) {
    omp_set_num_threads(1);
    const std::unique_ptr<Backend> backend = open();
    const auto model = tiny_transformer(*backend, dtype);
    // A CPU's ops read where documents begin on the host: a kept function has that by value.
    const bool on_gpu = backend->traits().can_offload;
    Adapter adapter(*model, {.shape = lora, .targets = {"all-linear"}});
    adapter.lay_out_for_training();
    SharedStep shared(*model, adapter, &transport, rank, size,
                      {.clip = kClip, .fast_reduce = fast});
    TrainerConfig config{.schedule = {ScheduleKind::Constant, 1e-2, 0, 7}, .clip = kClip};
    config.seed = 11, config.record = record;
    shared.join(config);
    Trainer trainer(*model, adapter, config);
    CHECK(trainer.why_not_recorded().empty() == record);
    Trained& trained = all[static_cast<std::size_t>(rank)];
    for (unsigned i = 0; i < 7; ++i) {
      std::vector<HostBatch> batches;
      for (int m = 0; m < n_micro; ++m) {
        const int longest = i == 2 || i == 4 ? 200 : 50 + (on_gpu ? m : 0);
        std::vector<Row> rows = random_rows({longest, 9}, 100 * i + static_cast<unsigned>(m));
        if (m == 1)
          for (Row& row : rows) std::fill(row.supervised.begin(), row.supervised.end(), 0);
        batches.push_back(make_host_batch(std::vector<const Row*>{&rows[0], &rows[1]}));
      }
      const StepReport r = trainer.step(batches);
      trained.numbers.insert(trained.numbers.end(), {r.loss, r.grad_norm});
      trained.recorded.push_back(r.recorded);
      trainer.between_steps([&] {  // another's temporaries
        backend->fill(backend->empty(Tag::Workspace, DType::F32, {5000}), 1e30);
      });
    }
    for (const Parameter* p : adapter.parameters())
      trained.values.push_back(to_host<float>(p->value()));
  });
  for (const Trained& other : all) {
    CHECK(other.values == all[0].values);
    CHECK(other.numbers == all[0].numbers);
  }
  return all[0];
}

void check_recorded(bool fast, DType dtype, const std::function<std::unique_ptr<Backend>()>& open) {
  for (const LoraShape& lora :
       {LoraShape{.rank = 4, .alpha = 7, .dropout = 0.2f}, LoraShape{.rank = 2, .dora = true}})
    for (int n_micro : {1, 5}) {
      CAPTURE(n_micro);
      CAPTURE(lora.dora);
      std::optional<Trained> first;
      for (int size : {1, 2, 3}) {
        CAPTURE(size);
        const Trained recorded = train(size, n_micro, true, fast, lora, dtype, open),
                      launched = train(size, n_micro, false, fast, lora, dtype, open);
        if (!first || fast) first = launched;
        CHECK(launched.recorded == std::vector<bool>(7, false));
        // A size is launched when it comes first, and so is the first step's update.
        CHECK(recorded.recorded == std::vector<bool>{false, true, false, true, true, true, true});
        for (const Trained* one : {&recorded, &launched}) {
          CHECK(one->values == first->values);
          CHECK(one->numbers == first->numbers);
        }
      }
    }
}

}  // namespace

TEST_CASE("recorded parts of a shared step read each micro-batch where they were recorded") {
  for (bool fast : {false, true})
    check_recorded(fast, DType::F32, [] { return std::make_unique<ReplayingBackend>(); });
}

TEST_CASE("cuda: recorded parts of a shared step leave the bytes of launched ones") {
  LK_NEEDS_GPU();
  for (bool fast : {false, true})
    for (DType dtype : {DType::F32, DType::BF16})
      check_recorded(fast, dtype, [] { return open_device("cuda:0"); });
}
