// AdamW's moments in slices, one for each process: what trains has the bytes of one process that has them
// all, whatever a slice's border cuts.
#include <omp.h>

#include <numeric>

#include "cpu/cpu_backend.h"
#include "cpu/kernels.h"
#include "cuda/open_device.h"
#include "dist/shared_step.h"
#include "parity.h"
#include "process_threads.h"
#include "run/checkpoint.h"
#include "run/methods.h"
#include "scratch_folder.h"
#include "tensor/slice_kernels.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

Tensor master(Backend& backend, std::int64_t n) {
  return tensor_from(backend, DType::F32, {n}, random_values(n, static_cast<unsigned>(n)));
}

std::vector<Parameter> parameters_of(Backend& backend, const std::vector<std::int64_t>& sizes) {
  std::vector<Parameter> all;
  for (std::size_t i = 0; i < sizes.size(); ++i)
    all.emplace_back(concat("p", i), master(backend, sizes[i]), DType::F32);
  return all;
}

std::vector<Parameter*> pointers_to(std::vector<Parameter>& all) {
  std::vector<Parameter*> pointers;
  pointers.reserve(all.size());
  for (Parameter& p : all) pointers.push_back(&p);
  return pointers;
}

}  // namespace

TEST_CASE("slices cover every number once, end where pieces do, and are as equal as these allow") {
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  constexpr std::int64_t kPiece = 128;
  for (const std::vector<std::int64_t>& sizes : {std::vector<std::int64_t>{3},
                                                 {1, 1, 1},
                                                 {1000},
                                                 {128, 129, 127, 64},
                                                 {5000, 7, 3000, 1},
                                                 {1, 100000},
                                                 {40, 0, 40}}) {
    std::vector<Parameter> all = parameters_of(*backend, sizes);
    const auto total = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    for (const int size : {1, 2, 3, 4, 6, 7}) {
      CAPTURE(size);
      CAPTURE(total);
      const OptimizerSlices slices(pointers_to(all), kPiece, size);
      std::vector<std::int64_t> covered(sizes.size());
      std::int64_t numbers = 0, sums = 0, with_loss = 0;
      for (int r = 0; r < size; ++r) {
        const std::vector<AdamW::Slice> own = slices.of(r);
        std::int64_t n = 0, n_sums = 0;
        for (std::size_t i = 0; i < sizes.size(); ++i) {
          const auto [begin, end] = own[i];
          if (begin == end) continue;
          CHECK(begin % kPiece == 0);
          CHECK((end % kPiece == 0 || end == sizes[i]));
          n += end - begin;
          n_sums += (end - begin + kPiece - 1) / kPiece;
        }
        CHECK(slices.numel(r) == n);
        CHECK(slices.numel(r) <= slices.numel(0));
        CHECK(slices.sums(r).size() == n_sums);
        CHECK(slices.range(r).size() <= slices.longest());
        // Gaps between parameters, and the loss, count as numbers where borders are sought.
        const std::int64_t gaps = 64 * (std::ssize(sizes) + 1);
        CHECK(n <= total / size + kPiece + gaps);
        if (total > 0) CHECK(n >= total / size - kPiece - gaps);
        numbers += n, sums += n_sums;
        with_loss += slices.with_loss() == r;
      }
      CHECK(numbers == total);
      CHECK(sums == slices.n_sums());
      CHECK(with_loss == 1);
      // In the order of the vector each slice goes on where the last one ended.
      std::vector<OptimizerSlices::Range> ranges, of_sums;
      for (int r = 0; r < size; ++r)
        ranges.push_back(slices.range(r)), of_sums.push_back(slices.sums(r));
      const auto in_order = [](const auto& a, const auto& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
      };
      for (auto* each : {&ranges, &of_sums}) {
        std::sort(each->begin(), each->end(), in_order);
        CHECK(each->front().begin == 0);
        for (std::size_t i = 1; i < each->size(); ++i)
          CHECK((*each)[i].begin == (*each)[i - 1].end);
      }
      // Each number of a parameter is in one of the parts of all slices.
      for (int r = 0; r < size; ++r)
        slices.for_each_part(slices.range(r),
                             [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t) {
                               if (t == 0) return;
                               CHECK(from == slices.of(r)[t - 1].begin);
                               CHECK(to == slices.of(r)[t - 1].end);
                               covered[t - 1] += to - from;
                             });
      CHECK(covered == sizes);
    }
  }
}

TEST_CASE("sums of squares of slices add up to the bits of the whole") {
  std::vector<std::unique_ptr<Backend>> devices;
  devices.push_back(make_cpu_backend());
  if (n_gpus() > 0) devices.push_back(open_device("cuda:0"));
  for (const std::unique_ptr<Backend>& backend : devices) {
    CAPTURE(backend->name());
    SliceKernels& kernels = *backend->slice_kernels();
    const std::int64_t piece = kernels.piece();
    std::vector<Parameter> all = parameters_of(*backend, {3 * piece + 5, 1, piece, 700, 9 * piece});
    std::vector<Tensor> whole;
    whole.reserve(all.size());
    for (const Parameter& p : all) whole.push_back(p.value());
    const Tensor want = backend->empty(Tag::Workspace, DType::F32, {1});
    backend->sum_squares(want, whole);
    for (const int size : {1, 2, 5, 8, 40}) {
      CAPTURE(size);
      const OptimizerSlices slices(pointers_to(all), piece, size);
      const Tensor sums = backend->empty(Tag::Workspace, kernels.sum_dtype(), {slices.n_sums()}),
                   got = backend->empty(Tag::Workspace, DType::F32, {1});
      for (int r = 0; r < size; ++r) {
        std::vector<Tensor> own;
        const std::vector<AdamW::Slice> parts = slices.of(r);
        for (std::size_t i = 0; i < parts.size(); ++i)
          if (parts[i].end > parts[i].begin)
            own.push_back(whole[i].slice_rows(parts[i].begin, parts[i].end));
        const auto [begin, end] = slices.sums(r);
        if (!own.empty()) kernels.square_sums(sums.slice_rows(begin, end), own);
      }
      kernels.add_square_sums(got, sums);
      CHECK(to_host<float>(got) == to_host<float>(want));
    }
  }
}

TEST_CASE("many copies at once are those that are made one by one") {
  std::vector<std::unique_ptr<Backend>> devices;
  devices.push_back(make_cpu_backend());
  if (n_gpus() > 0) devices.push_back(open_device("cuda:0"));
  for (const std::unique_ptr<Backend>& backend : devices) {
    CAPTURE(backend->name());
    const Tensor source = random_tensor(*backend, DType::F32, {100000}, 1);
    for (const DType dtype : {DType::F32, DType::BF16})
      for (const std::int64_t pad : {0, 4, 5}) {
        CAPTURE(pad);
        std::vector<Tensor> got, want;
        std::vector<SliceKernels::Copy> copies;
        std::int64_t at = 0;
        for (int i = 0; i < 500; ++i) {
          const std::int64_t rows = i % 5, cols = i == 17 ? 20000 : 1 + 13 * i % 37;
          for (std::vector<Tensor>* each : {&got, &want}) {
            const Tensor wide = backend->empty(Tag::Workspace, dtype, {rows, cols + pad});
            backend->fill(wide, 7);
            each->push_back(wide);
          }
          const Tensor from = source.slice_rows(at, at + rows * cols);
          copies.push_back({got.back().slice_cols(pad / 2, pad / 2 + cols), from});
          backend->copy(want.back().slice_cols(pad / 2, pad / 2 + cols),
                        from.reshape({rows, cols}));
          at = (at + rows * cols) % 20000;
        }
        backend->slice_kernels()->copy_many(copies);
        for (std::size_t i = 0; i < got.size(); ++i)
          CHECK(to_host_f64(got[i]) == to_host_f64(want[i]));
      }
  }
}

namespace {

// Matrices of several pieces, some of which slices cut.
ModelConfig wide_config() {
  ModelConfig c = tiny_config();
  c.hidden_size = 320;
  c.intermediate_size = 400;
  c.head_dim = 32;
  return c;
}

struct Setting {
  std::string name;
  ModelConfig config;
  MethodConfig methods;
  DType dtype = DType::F32;
  double loraplus_ratio = 0;
  float weight_decay = 0;
  std::int64_t chunk = SharedStep::kChunk;
};

struct Trained {
  std::vector<std::vector<float>> values, computed, m, v;
  std::vector<double> numbers;  // loss and norm of each step
  bool cut = false;             // whether a slice ends amid a parameter
};

// Trains steps [first, last) of three micro-batches each on `size` processes. The first one's values and
// numbers are those of all, and its moments all moments. Goes on from the folder's checkpoint and leaves
// another there, if one is named.
struct Steps {
  unsigned first = 0, last = 4;
  std::string folder = {};
};
Trained train(const Setting& s, int size, const std::function<std::unique_ptr<Backend>()>& open,
              const Steps& steps = {}) {
  std::vector<Trained> all(static_cast<std::size_t>(size));
  std::vector<std::int64_t> held(all.size()), most(all.size());
  run_processes(size, [&](int rank, Transport& transport) {
    omp_set_num_threads(1);
    const std::unique_ptr<Backend> backend = open();
    Transformer model(*backend, s.config, random_weights(*backend, s.config, s.dtype, 7), s.dtype,
                      256);
    const std::unique_ptr<Method> method = make_method(model, s.methods);
    if (auto* adapter = dynamic_cast<Adapter*>(method.get())) randomize_b(*adapter, 11, 0.5);
    method->lay_out_for_training();
    SharedStep shared(model, *method, &transport, rank, size, {.clip = 0.5, .chunk = s.chunk});
    TrainerConfig config{.schedule = {ScheduleKind::Constant, 1e-2, 0, 4},
                         .loraplus_ratio = s.loraplus_ratio,
                         .clip = 0.5};
    config.adamw.weight_decay = s.weight_decay;
    shared.join(config);
    Trainer trainer(model, *method, config);
    Trained& trained = all[static_cast<std::size_t>(rank)];
    if (steps.first > 0) Checkpoint(steps.folder).restore(*method, trainer);
    for (unsigned step = steps.first; step < steps.last; ++step) {
      std::vector<HostBatch> batches;
      for (unsigned i = 0; i < 3; ++i) {
        const std::vector<Row> rows = random_rows({20, 9}, 10 * step + i);
        batches.push_back(
            make_host_batch(std::vector<const Row*>{&rows[0], &rows[1]}, model.virtual_tokens()));
      }
      const StepReport r = trainer.step(batches);
      trained.numbers.insert(trained.numbers.end(), {r.loss, r.grad_norm});
    }
    trainer.between_steps([&] {
      std::optional<WholeMoments> moments = shared.gather_moments(trainer.optimizer());
      if (rank == 0 && !steps.folder.empty())
        save_checkpoint(steps.folder, *method, trainer, {{"grad_accum", 3}}, {}, {},
                        size > 1 ? moments : std::nullopt);
      trained.m = std::move(moments->m), trained.v = std::move(moments->v);
    });
    for (const auto& [begin, end] : shared.slices().of(rank)) trained.cut |= begin > 0;
    for (const Parameter* p : method->parameters()) {
      trained.values.push_back(to_host<float>(p->value()));
      const std::vector<double> computed = to_host_f64(p->compute());
      trained.computed.emplace_back(computed.begin(), computed.end());
    }
    held[static_cast<std::size_t>(rank)] = backend->ledger()[Tag::Optimizer].peak_bytes;
    CHECK(held[static_cast<std::size_t>(rank)] == 8 * shared.slices().numel(rank));
    most[static_cast<std::size_t>(rank)] = method->n_parameters();
    CHECK(trained.m.empty() == (rank > 0));
  });
  CHECK(std::accumulate(held.begin(), held.end(), std::int64_t{0}) == 8 * most[0]);
  for (const Trained& other : all) {
    CHECK(other.values == all[0].values);
    CHECK(other.computed == all[0].computed);
    CHECK(other.numbers == all[0].numbers);
    all[0].cut |= other.cut;
  }
  return all[0];
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  const auto lora = [](bool dora) {
    MethodConfig c;
    c.lora = {.shape = {.rank = 60, .alpha = 30, .dropout = 0.1f, .dora = dora},
              .targets = {"all-linear"}};
    return c;
  };
  all.push_back({.name = "LoRA+ with decay",
                 .config = wide_config(),
                 .methods = lora(false),
                 .loraplus_ratio = 4,
                 .weight_decay = 0.1f});
  all.push_back({.name = "DoRA in BF16, small chunks",
                 .config = wide_config(),
                 .methods = lora(true),
                 .dtype = DType::BF16,
                 .weight_decay = 0.1f,
                 .chunk = 5000});
  MethodConfig full;
  full.names = {"full"};
  all.push_back({.name = "full", .config = wide_config(), .methods = full, .weight_decay = 0.1f});
  // Fewer numbers than processes, all in one slice.
  MethodConfig prompt;
  prompt.names = {"prompt"};
  prompt.prompt.virtual_tokens = 1;
  ModelConfig narrow = tiny_config();
  narrow.hidden_size = 4;
  all.push_back({.name = "one prompt of four numbers", .config = narrow, .methods = prompt});
  return all;
}

void check_slices(const std::function<std::unique_ptr<Backend>()>& open) {
  for (const Setting& s : settings()) {
    CAPTURE(s.name);
    std::optional<Trained> one;
    bool cut = false;
    for (const int size : {1, 2, 3, 4, 6}) {
      CAPTURE(size);
      const Trained trained = train(s, size, open);
      if (!one) one = trained;
      cut |= trained.cut;
      CHECK(trained.values == one->values);
      CHECK(trained.computed == one->computed);
      CHECK(trained.m == one->m);
      CHECK(trained.v == one->v);
      CHECK(trained.numbers == one->numbers);
    }
    CHECK(cut == (s.config.hidden_size == 320));
  }
}

}  // namespace

TEST_CASE("any number of slices leaves the same values, copies and moments") {
  check_slices([] { return make_cpu_backend(); });
}

TEST_CASE("slices of another number of processes go on from a checkpoint of whole moments") {
  ScratchFolder scratch;
  for (const Setting& s : settings()) {
    CAPTURE(s.name);
    const auto open = [] { return make_cpu_backend(); };
    const Trained whole = train(s, 1, open, {0, 6});
    const Steps parts[] = {{0, 2, scratch.path()}, {2, 4, scratch.path()}, {4, 6, scratch.path()}};
    const int sizes[] = {2, 3, 1};
    Trained last;
    for (int i = 0; i < 3; ++i) last = train(s, sizes[i], open, parts[i]);
    CHECK(last.values == whole.values);
    CHECK(last.m == whole.m);
    CHECK(last.v == whole.v);
  }
}

TEST_CASE("cuda: any number of slices leaves the same values, copies and moments") {
  LK_NEEDS_GPU();
  check_slices([] { return open_device("cuda:0"); });
}

TEST_CASE("the gradient is gathered before the parameter is named that made it not finite") {
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  backend->fill(adapter.layers()[0]->b().value(), NAN);
  int gathered = 0;
  TrainerConfig config;
  config.gather_gradients = [&] { ++gathered; };
  Trainer trainer(*model, adapter, config);
  for (int i = 0; i < 2; ++i) CHECK(trainer.step(random_rows({8}, 1)).skipped);
  CHECK(gathered == 0);
  CHECK_THROWS_AS(trainer.step(random_rows({8}, 1)), NonFiniteError);
  CHECK(gathered == 1);
}

TEST_CASE("an optimizer of other slices is refused") {
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  struct Nowhere : Transport {
    void exchange(std::span<const Piece>, std::span<const Piece>) override {}
  } transport;
  SharedStep shared(*model, adapter, &transport, 1, 2, {});
  AdamW sliced(adapter.parameters(), {}, {}, shared.own_slices());
  CHECK_THROWS_AS(sliced.grad_norm_sq(), Error);
  TrainerConfig config;
  shared.join(config);
  config.slices.clear();
  Trainer trainer(*model, adapter, config);
  CHECK_THROWS_WITH_AS(trainer.step(random_rows({8}, 1)), doctest::Contains("an optimizer of"),
                       Error);
}
