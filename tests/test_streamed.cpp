// A base whose layers wait on the host: the same bits as one that stays. Would catch a layer that is read
// before it arrived or after another took its place, a weight that nobody asks the host for, a plan that
// counts what is not on the device.
#include <omp.h>

#include <barrier>
#include <thread>

#include "cuda/open_device.h"
#include "heard_run.h"
#include "hostile.h"
#include "io/json.h"
#include "lora/joined.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "modelfile/base_precision.h"
#include "modelfile/load.h"
#include "modelfile/named_shapes.h"
#include "modelfile/weight_hash.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "nn/streamed_base.h"
#include "offloading_backend.h"
#include "parity.h"
#include "run/methods.h"
#include "run/plan.h"
#include "run/shared_base.h"
#include "scratch_folder.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

constexpr std::int64_t kLayers = 5;
constexpr unsigned kSteps = 10;

ModelConfig config_of(const std::string& family = "llama") {
  ModelConfig config = tiny_config();
  config.n_layers = kLayers;
  return as_family(config, family);
}

struct Setting {
  DType dtype = DType::F32;
  bool joined = false, nf4 = false, dora = false;
  std::string recompute = "none";
  std::vector<std::string> targets = {"all-linear"};
  std::vector<std::string> methods = {"lora"};
  int micro_batches = 1;
  std::string family = "llama";
};

struct Outcome {
  std::vector<double> numbers;  // losses, norms, losses of evaluations
  std::vector<std::vector<double>> trained;
  std::string base;                // SHA-256 before and after
  std::vector<std::int32_t> text;  // generated in the end
  std::int64_t weight_bytes = 0, host_bytes = 0;
  std::int64_t fetched = 0, late = 0;  // by the last step
  bool operator==(const Outcome&) const = default;
};

// Ten steps with evaluations between them. `layers` of the base are streamed, from the host or from the
// devices of `group`.
Outcome train(std::unique_ptr<Backend> backend, const Setting& s, std::int64_t layers,
              const std::optional<ShardGroup>& group = {}) {
  const ModelConfig config = config_of(s.family);
  ModelWeights weights = random_weights(*backend, config, s.dtype, 7);
  // One layer is held in another format than the others: the slots' parts lie elsewhere for it.
  if (s.nf4)
    quantise_weights(*backend, config, weights, {BasePrecision::Nf4, {"k_proj", "layers.2"}});
  std::shared_ptr<StreamedBase> streamed;
  if (layers > 0) streamed = stream_weights(*backend, config, weights, layers, group);
  Transformer model(*backend, config, std::move(weights), s.dtype, 256);
  MethodConfig what;
  what.names = s.methods;
  what.lora = tiny_lora(s.targets);
  what.lora.shape.dora = s.dora;
  what.prompt.virtual_tokens = what.prefix.virtual_tokens = what.llama_adapter.length = 4;
  const std::unique_ptr<Method> method = make_method(model, what);
  if (auto* adapter = dynamic_cast<Adapter*>(method.get())) {
    randomize_b(*adapter, 11, 0.5);
    if (s.joined && !backend->traits().joins_projections)
      REQUIRE(join_projections(model, *adapter));
  }
  if (backend->traits().joins_projections) method->lay_out_for_training();
  model.set_recompute(parse_recompute(s.recompute));
  TrainerConfig training;
  training.schedule = {ScheduleKind::Cosine, 0.02, 1, kSteps};
  Trainer trainer(model, *method, training);
  const std::int64_t weights_bytes = backend->ledger()[Tag::Weights].live_bytes;
  Outcome o;
  o.base = weights_sha256(model.weights());
  const std::vector<Row> eval = random_rows({12, 30}, 99);
  for (unsigned step = 0; step < kSteps; ++step) {
    const std::vector<Row> rows = random_rows({9, 40, 3}, 20 + step);
    std::vector<std::vector<const Row*>> micro;
    for (int i = 0; i < s.micro_batches; ++i)
      micro.push_back(i % 2 ? pointers(rows, 0, 2) : pointers(rows));
    const std::int64_t fetched = streamed ? streamed->fetched() : 0;
    const std::int64_t late = streamed ? streamed->late() : 0;
    const StepReport r = trainer.step(micro);
    o.numbers.push_back(r.loss), o.numbers.push_back(r.grad_norm);
    if (streamed) o.fetched = streamed->fetched() - fetched, o.late = streamed->late() - late;
    if (step % 4 == 3)
      trainer.between_steps([&] { o.numbers.push_back(evaluate(model, eval, 64).loss); });
  }
  for (const Parameter* p : method->parameters()) o.trained.push_back(to_host_f64(p->value()));
  CHECK(weights_sha256(model.weights()) == o.base);
  o.weight_bytes = weights_bytes;
  o.host_bytes = backend->offloaded()[Tag::Weights].live_bytes;
  prove_memory(*backend, *method, weights_bytes, backend->weight_gradient_matmuls(),
               kSteps * s.micro_batches);
  SamplingSettings sampling;
  sampling.max_tokens = 6;
  o.text = generate(model, eval[0].ids, sampling).ids;
  if (group) group->gather({});  // nobody reads it any more
  return o;
}

// The processes of a group as threads.
class Group {
 public:
  explicit Group(int size) : texts_(static_cast<std::size_t>(size)), meeting_(size) {}
  void run(const std::function<void(const ShardGroup&)>& work) {
    std::vector<std::jthread> threads;
    for (int r = 0; r < static_cast<int>(texts_.size()); ++r)
      threads.emplace_back([this, r, &work] {
        omp_set_num_threads(1);
        work({r, static_cast<int>(texts_.size()), [this, r](const std::string& own) {
                texts_[static_cast<std::size_t>(r)] = own;
                meeting_.arrive_and_wait();
                std::vector<std::string> all = texts_;
                meeting_.arrive_and_wait();
                return all;
              }});
      });
  }

 private:
  std::vector<std::string> texts_;
  std::barrier<> meeting_;
};

std::vector<Outcome> train_in_parts(const std::function<std::unique_ptr<Backend>()>& open,
                                    const Setting& s, std::int64_t layers, int size) {
  std::vector<Outcome> all(static_cast<std::size_t>(size));
  Group(size).run([&](const ShardGroup& group) {
    all[static_cast<std::size_t>(group.rank)] = train(open(), s, layers, group);
  });
  return all;
}

void check_same(const Outcome& got, const Outcome& want) {
  CHECK(got.numbers == want.numbers);
  CHECK(got.trained == want.trained);
  CHECK(got.base == want.base);
  CHECK(got.text == want.text);
}

std::string text_of(const Setting& s) {
  return concat(dtype_name(s.dtype), s.joined ? " joined" : "", s.nf4 ? " nf4" : "",
                s.dora ? " dora" : "", " ", s.family, " ", s.recompute, " ", s.methods[0], " ",
                s.targets[0], " ", s.micro_batches);
}

// A weight's bytes as they lie on the device now.
std::vector<std::vector<std::byte>> bytes_of(const Weight& w) {
  std::vector<std::vector<std::byte>> all;
  auto add = [&](const Tensor& t) {
    all.emplace_back(t.bytes());
    t.backend().download(all.back().data(), t, t.bytes());
  };
  if (const QuantisedMatrix* q = w.quantised()) {
    for (const Tensor& plane : q->planes)
      if (plane) add(plane);
  } else {
    add(w.values());
  }
  return all;
}

}  // namespace

TEST_CASE("losses, evaluations and adapters are bit for bit those of a base that stays") {
  for (const Setting& s : std::vector<Setting>{
           {},
           {.dtype = DType::BF16, .joined = true, .recompute = "block"},
           {.dtype = DType::BF16, .joined = true, .recompute = "keep-attention,offload"},
           {.nf4 = true, .recompute = "gate-up,block:2"},
           {.dtype = DType::BF16, .joined = true, .nf4 = true, .recompute = "block,offload"},
           {.dtype = DType::BF16, .joined = true, .dora = true, .micro_batches = 2},
           {.nf4 = true, .dora = true},
           {.dtype = DType::BF16,
           .joined = true,
           .targets = {"layers.1.mlp.down_proj", "layers.3.self_attn.q_proj"}},
           {.family = "gpt2"},
           {.dtype = DType::BF16, .joined = true, .family = "qwen3"},
           {.recompute = "block", .family = "gemma3_text"},
           {.methods = {"ia3"}},
           {.methods = {"bitfit"}, .micro_batches = 2},
           {.methods = {"bottleneck"}},
           {.methods = {"prefix"}},
           {.recompute = "block", .methods = {"prompt"}},
           {.methods = {"llama-adapter"}, .family = "gpt2"}}) {
    const std::string what = text_of(s);
    CAPTURE(what);
    const Outcome want = train(std::make_unique<OffloadingBackend>(), s, 0);
    for (std::int64_t layers : {std::int64_t{1}, kLayers - 1, StreamedLayers::kAll}) {
      CAPTURE(layers);
      const Outcome got = train(std::make_unique<OffloadingBackend>(), s, layers);
      check_same(got, want);
      CHECK(got.host_bytes > 0);
      if (layers > 2) CHECK(got.weight_bytes < want.weight_bytes);
    }
  }
}

TEST_CASE("a base in parts on several devices gives the bits of one that stays") {
  const auto open = [] { return std::make_unique<OffloadingBackend>(); };
  for (const Setting& s :
       std::vector<Setting>{{.dtype = DType::BF16, .joined = true, .recompute = "block,offload"},
                            {.nf4 = true, .dora = true, .micro_batches = 2},
                            {.recompute = "keep-attention", .family = "gemma3_text"},
                            {.methods = {"llama-adapter"}, .family = "gpt2"}}) {
    const std::string what = text_of(s);
    CAPTURE(what);
    const Outcome want = train(open(), s, 0);
    for (int size : {1, 2, 3})
      for (std::int64_t layers : {std::int64_t{2}, StreamedLayers::kAll}) {
        CAPTURE(size);
        CAPTURE(layers);
        std::int64_t held = 0;
        for (const Outcome& got : train_in_parts(open, s, layers, size)) {
          check_same(got, want);
          CHECK(got.host_bytes == 0);
          if (s.methods[0] == "lora") CHECK(got.late == 0);
          if (layers > 2 && size > 1 && !s.nf4) CHECK(got.weight_bytes < want.weight_bytes);
          held += got.weight_bytes;
        }
        CHECK(held > want.weight_bytes);  // all of it, and slots
      }
  }
}

TEST_CASE("parts cover each byte once") {
  for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{256}, std::size_t{257},
                            std::size_t{100000}, (std::size_t{1} << 33) + 8})
    for (int size : {1, 2, 3, 8, 1000}) {
      std::size_t at = 0;
      for (int r = 0; r < size; ++r) {
        const ShardRange part = shard_range(bytes, r, size);
        CHECK(part.begin == at);
        CHECK(part.size() <= bytes / static_cast<std::size_t>(size) + 256);
        at = part.end;
      }
      CHECK(at == bytes);
    }
}

TEST_CASE("a step copies each layer once forward and once backward, and waits for none") {
  for (const char* recompute : {"none", "gate-up", "keep-attention", "block", "block,offload"})
    for (bool joined : {false, true})
      for (int micro_batches : {1, 3}) {
        CAPTURE(recompute);
        CAPTURE(joined);
        const Setting s{.dtype = DType::BF16,
                        .joined = joined,
                        .recompute = recompute,
                        .micro_batches = micro_batches};
        const Outcome all = train(std::make_unique<OffloadingBackend>(), s, kLayers);
        CHECK(all.fetched == 2 * (kLayers - 2) * micro_batches);
        CHECK(all.late == 0);
        CHECK(train(std::make_unique<OffloadingBackend>(), s, 2).fetched == 0);  // both have a slot
      }
}

TEST_CASE("a weight's numbers are its own in whatever order weights are asked for theirs") {
  for (const bool nf4 : {false, true}) {
    OffloadingBackend backend;
    const ModelConfig config = config_of();
    ModelWeights weights = random_weights(backend, config, DType::BF16, 7);
    if (nf4)
      quantise_weights(backend, config, weights, {BasePrecision::Nf4, {"layers.2", "up_proj"}});
    std::vector<std::vector<std::vector<std::byte>>> want;
    visit_weights(weights, [&](const Weight& w) { want.push_back(bytes_of(w)); });
    const std::string sha256 = weights_sha256(weights);
    stream_weights(backend, config, weights, StreamedLayers::kAll);
    std::vector<const Weight*> all;
    visit_weights(weights, [&](const Weight& w) { all.push_back(&w); });
    REQUIRE(all.size() == want.size());
    std::mt19937 rng(3);
    for (int i = 0; i < 400; ++i) {
      const std::size_t at = rng() % all.size();
      CHECK_MESSAGE(bytes_of(*all[at]) == want[at], all[at]->name());
    }
    CHECK(weights_sha256(weights) == sha256);
  }
}

TEST_CASE("loading sends each matrix to the host, and the device never holds the base") {
  for (const char* name : {"peft/tiny", "quantised/bnb"})
    for (BasePrecision precision : {BasePrecision::Auto, BasePrecision::Dense}) {
      CAPTURE(name);
      const ModelFile file(concat(LK_TEST_DATA, "/golden/", name));
      OffloadingBackend backend;
      LoadOptions options{.storage = {precision}, .hash = true};
      const std::string want = load_weights(backend, file, DType::F32, options).sha256;
      backend.ledger().reset_peaks();
      options.storage.streamed = {StreamedLayers::kAll};
      const LoadedModel loaded = load_weights(backend, file, DType::F32, options);
      const Ledger::Entry& e = backend.ledger()[Tag::Weights];
      CHECK(e.peak_bytes == e.live_bytes);
      CHECK(loaded.sha256 == want);
      CHECK(weights_sha256(loaded.weights) == want);
    }
}

TEST_CASE("processes that load a base together have a part each, and its hash") {
  const ModelFile file(concat(LK_TEST_DATA, "/golden/peft/tiny"));
  OffloadingBackend whole;
  const LoadedModel stays = load_weights(whole, file, DType::F32, {.hash = true});
  std::array<std::int64_t, 2> held = {};
  Group(2).run([&](const ShardGroup& group) {
    OffloadingBackend backend;
    LoadOptions options{.storage = {BasePrecision::Dense}, .group = &group, .hash = true};
    options.storage.streamed = {StreamedLayers::kAll, true};
    const LoadedModel loaded = load_weights(backend, file, DType::F32, options);
    CHECK(loaded.sha256 == stays.sha256);
    CHECK(weights_sha256(loaded.weights) == stays.sha256);
    held[static_cast<std::size_t>(group.rank)] = backend.ledger()[Tag::Weights].live_bytes;
    group.gather({});
  });
  CHECK(held[0] >= held[1]);
}

namespace {

// Takes a GPU's plan for its own.
struct Card : OffloadingBackend {
  std::string name() const override { return "cuda:0"; }
};

// The adapter of a run on a Card, stopped after a step and resumed if `stop_after` is given; `offload`:
// before and after that.
std::string run_on_card(const std::string& out, std::array<std::int64_t, 2> offload,
                        std::int64_t stop_after, std::string& said) {
  FinetuneSettings s;
  s.model = concat(LK_TEST_DATA, "/golden/peft/tiny"), s.out = out;
  s.data = concat(LK_TEST_DATA, "/golden/peft/rows.jsonl");
  s.dtype = "f32", s.seq_len = 64, s.rank = 2, s.lr = 1e-2, s.steps = 8, s.eval_every = 3;
  s.batch = 2, s.eval_split = 0.3, s.samples = 1;
  auto go = [&](std::int64_t layers, std::int64_t stop) {
    SharedBase base;
    base.backend = std::make_unique<Card>();
    Ear ear;
    ear.stop_after = stop;
    s.streamed = {layers};
    finetune(s, base, ear, ear.stop);
    said = ear.heard;
  };
  go(offload[0], stop_after);
  s.resume = true;
  if (stop_after > 0) go(offload[1], -1);
  return slurp(out + "/adapter_model.safetensors") + slurp(out + "/adapter_config.json");
}

}  // namespace

TEST_CASE("a whole run gives the same adapter, and goes on with layers elsewhere than it began") {
  const ScratchFolder scratch;
  const std::int64_t all = StreamedLayers::kAll;
  std::string said;
  const std::string want = run_on_card(scratch.file("stays"), {0, 0}, -1, said);
  CHECK(run_on_card(scratch.file("one"), {1, 1}, -1, said) == want);
  CHECK(run_on_card(scratch.file("all"), {all, all}, -1, said) == want);
  const Json run = read_json(scratch.file("all") + "/run.json");
  CHECK(run["settings"]["offload_base"] == "all");
  CHECK(run["memory"]["offloaded_base_bytes"] > 0);
  CHECK(slurp(scratch.file("all") + "/run.toml").find("offload-base = \"all\"\n") !=
        std::string::npos);
  CHECK(run_on_card(scratch.file("later"), {0, all}, 3, said) == want);
  CHECK(said.find("resumed at step 3") != std::string::npos);
  CHECK(run_on_card(scratch.file("before"), {all, 0}, 5, said) == want);
}

TEST_CASE("a run over a base in memory tells its own peaks, on the host too") {
  const ScratchFolder scratch;
  SharedBase base;
  base.backend = std::make_unique<Card>();
  FinetuneSettings s;
  s.model = concat(LK_TEST_DATA, "/golden/peft/tiny");
  s.data = concat(LK_TEST_DATA, "/golden/peft/rows.jsonl");
  s.dtype = "f32", s.seq_len = 64, s.rank = 2, s.lr = 1e-2, s.steps = 1, s.samples = 0;
  auto offloaded = [&](const std::string& recompute) {
    s.recompute = parse_recompute(recompute), s.out = scratch.file(recompute);
    Ear ear;
    finetune(s, base, ear, ear.stop);
    return read_json(s.out + "/run.json")["memory"]["offloaded_peak_bytes"].get<std::int64_t>();
  };
  CHECK(offloaded("offload") > 0);
  CHECK(offloaded("none") == 0);
}

TEST_CASE("what can't be is refused by name") {
  auto cpu = make_cpu_backend();
  ModelWeights weights = random_weights(*cpu, config_of(), DType::F32, 7);
  CHECK_THROWS_AS(stream_weights(*cpu, config_of(), weights, 1), UsageError);
  PlanRequest request;
  request.model = config_of(), request.methods.lora = tiny_lora(), request.seq_len = 64;
  request.streamed = {1};
  CHECK_THROWS_AS(plan_training(request), UsageError);

  PlanRequest parts = request;
  parts.streamed.divided = true, parts.processes = 2;
  CHECK_THROWS_AS(plan_training(parts), UsageError);  // on a CPU
  parts.device = "cuda", parts.processes = 0;
  CHECK_THROWS_AS(plan_training(parts), UsageError);
  // A process that has fewer layers in parts names fewer of them.
  OffloadingBackend alone;
  ModelWeights weights_of_one = random_weights(alone, config_of(), DType::F32, 7);
  const ShardGroup others{0, 2, [](const std::string& own) {
                            return std::vector<std::string>{own, own.substr(0, own.size() / 2)};
                          }};
  CHECK_THROWS_AS(stream_weights(alone, config_of(), weights_of_one, 1, others), UsageError);

  OffloadingBackend backend;
  ModelWeights own = random_weights(backend, config_of(), DType::F32, 7);
  stream_weights(backend, config_of(), own, 2);
  Transformer model(backend, config_of(), std::move(own), DType::F32, 256);
  MethodConfig full;
  full.names = {"full"};
  CHECK_THROWS_AS(make_method(model, full), UsageError);
  MethodConfig pissa;
  pissa.lora = tiny_lora();
  pissa.lora.init = LoraInit::Pissa;
  CHECK_THROWS_AS(make_method(model, pissa), UsageError);

  for (const char* text : {"", "-1", "x", "3x", "al", "99999999999999999999"})
    CHECK_THROWS_AS(parse_streamed_layers(text, "0"), UsageError);
  CHECK_THROWS_AS(parse_streamed_layers("1", "all"), UsageError);
  for (const char* text : {"0", "3", "all"}) {
    CHECK(parse_streamed_layers(text, "0").text(false) == text);
    CHECK(parse_streamed_layers("0", text).text(true) == text);
    CHECK(parse_streamed_layers("0", text).text(false) == "0");
  }
}

TEST_CASE("the plan counts two slots on the device and the rest on the host") {
  PlanRequest request;
  request.model = named_shape("llama2-7b"), request.methods.lora = tiny_lora();
  request.compute_dtype = DType::BF16, request.device = "cuda", request.seq_len = 512;
  request.recompute = parse_recompute("block");
  auto weights = [](const Plan& plan) {
    for (const MemoryRow& row : plan.memory.rows)
      if (row.tag == tag_name(Tag::Weights)) return row.peak_bytes;
    return std::int64_t{0};
  };
  const Plan stays = plan_training(request);
  request.streamed = {StreamedLayers::kAll};
  const Plan plan = plan_training(request);
  const std::int64_t layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008);
  CHECK(plan.memory.offloaded_base_bytes == 32 * layer);
  CHECK_THROWS_AS(check_host_fits(plan, 1 << 20), OutOfMemoryError);
  check_host_fits(plan, 1 << 20, 32 * layer);  // it is there already
  check_host_fits(stays, 1 << 20);
  CHECK(weights(stays) - weights(plan) == 30 * layer);

  request.streamed.divided = true, request.processes = 4;
  const Plan parts = plan_training(request);
  CHECK(parts.memory.offloaded_base_bytes == 0);
  CHECK(weights(stays) - weights(parts) == (32 - 8 - 2) * layer);
}

TEST_CASE("cuda: a streamed base gives the bits of one that stays, which is recorded") {
  LK_NEEDS_GPU();
  for (const Setting& s : std::vector<Setting>{
           {.dtype = DType::BF16},
           {.dtype = DType::BF16, .recompute = "block,offload"},
           {.dtype = DType::BF16, .nf4 = true, .recompute = "block"},
           {.dtype = DType::BF16, .dora = true, .recompute = "keep-attention", .micro_batches = 2},
           {.dtype = DType::F32, .nf4 = true},
           {.dtype = DType::BF16, .methods = {"ia3"}},
           {.dtype = DType::BF16, .methods = {"prefix"}}}) {
    const std::string what = text_of(s);
    CAPTURE(what);
    const Outcome want = train(open_device("cuda"), s, 0);
    for (std::int64_t layers : {std::int64_t{1}, kLayers - 1, StreamedLayers::kAll}) {
      CAPTURE(layers);
      check_same(train(open_device("cuda"), s, layers), want);
    }
  }
}

TEST_CASE("cuda: a base in parts gives the bits of one that stays") {
  LK_NEEDS_GPU();
  const auto open = [] { return open_device("cuda"); };
  for (const Setting& s :
       std::vector<Setting>{{.dtype = DType::BF16, .recompute = "block,offload"},
                            {.dtype = DType::BF16, .nf4 = true, .recompute = "block"},
                            {.dtype = DType::F32, .dora = true, .micro_batches = 2}}) {
    const std::string what = text_of(s);
    CAPTURE(what);
    const Outcome want = train(open(), s, 0);
    for (int size : {1, 2, 3})
      for (const Outcome& got : train_in_parts(open, s, StreamedLayers::kAll, size))
        check_same(got, want);
  }
}
