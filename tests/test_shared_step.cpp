// A step of several processes against its definition: the gradients of its micro-batches, each computed
// alone, added in their order. Here each process is a thread with a device of its own.
#include <omp.h>

#include <thread>

#include "cpu/cpu_backend.h"
#include "dist/host_transport.h"
#include "dist/shared_step.h"
#include "dist/sockets.h"
#include "lora/trainer.h"
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

// A model, its adapter and a step on a device of their own.
struct Process {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> model = tiny_transformer(*backend, DType::F32);
  Adapter adapter{*model,
                  {.shape = {.rank = 4, .alpha = 7, .dropout = 0.2f}, .targets = {"all-linear"}}};
  AdamW optimizer{adapter.parameters(), {}};
  TrainStep train_step{*model, adapter, optimizer, {.clip = kClip, .seed = 11}};
  std::vector<Row> rows = step_rows();
  StepTensors step;

  Process() {
    omp_set_num_threads(1);
    const std::vector<HostBatch> batches = micro_batches(rows);
    std::vector<BatchSize> sizes;
    std::int64_t supervised = 0;
    for (const HostBatch& b : batches) sizes.push_back(size_of(b)), supervised += b.n_supervised();
    step = train_step.make_tensors(sizes);
    train_step.upload(step, batches, supervised, kMicroStepsDone);
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

Sum by_definition() {
  Process p;
  Sum sum;
  for (std::size_t i : {0, 1, 3, 4}) {
    p.adapter.zero_grad();
    Tape tape(*p.backend);
    const Var share = p.train_step.loss(tape, p.step.micro_batches[i], p.step, i);
    tape.backward(share);
    const auto one = p.gradients();
    const float loss = to_host<float>(share.value())[0];
    if (i == 0) {
      sum = {one, loss};
      continue;
    }
    sum.loss += loss;
    for (std::size_t k = 0; k < one.size(); ++k)
      for (std::size_t j = 0; j < one[k].size(); ++j) sum.gradients[k][j] += one[k][j];
  }
  return sum;
}

}  // namespace

TEST_CASE("the gradient of a step of several processes is the sum of its micro-batches' in order") {
  const Sum want = by_definition();
  std::vector<std::vector<float>> updated;  // by the first
  for (int size : {1, 2, 3, 4, 6}) {
    CAPTURE(size);
    FileDescriptor listening = listen_on(0, true);
    LaunchPlace place;
    place.size = size, place.port = port_of(listening);
    struct Result {
      Sum sum;
      std::vector<std::vector<float>> values;
      std::int64_t micro_steps = 0;
    };
    std::vector<Result> results(static_cast<std::size_t>(size));
    std::vector<std::jthread> threads;
    for (int r = 0; r < size; ++r) {
      place.rank = r, place.listening = r == 0 ? listening.release() : -1;
      threads.emplace_back([&results, place, size] {
        World world = size > 1 ? World(place, std::chrono::seconds(30)) : World();
        HostTransport transport(world);
        Process p;
        SharedStep shared(*p.model, p.adapter, &transport, place.rank, size, kClip);
        p.optimizer.begin_step(0.01f);
        shared.run(p.train_step, p.step, p.optimizer);
        results[static_cast<std::size_t>(place.rank)] = {
            {p.gradients(), to_host<float>(p.step.loss)[0]}, p.values(), shared.micro_steps()};
      });
    }
    threads.clear();
    std::int64_t micro_steps = 0;
    for (const Result& result : results) {
      CHECK(result.sum.gradients == want.gradients);
      CHECK(result.sum.loss == want.loss);
      if (updated.empty()) updated = result.values;
      CHECK(result.values == updated);
      micro_steps += result.micro_steps;
    }
    CHECK(micro_steps == 4);
  }
}
