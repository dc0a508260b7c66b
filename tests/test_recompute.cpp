// Recomputation: the same bits with less memory. Would catch a second forward that differs from the
// first (a mask drawn anew, a value that was overwritten in place), a gradient that meets its
// neighbours in another order, an input that comes back from the host too late or too often.
#include "cpu_ops.h"
#include "cuda/open_device.h"
#include "keeping_backend.h"
#include "lora/joined.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "modelfile/base_precision.h"
#include "offloading_backend.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

// A CPU that counts how often attention's forward and backward run.
struct AttentionCounts {
  int forward = 0, backward = 0;
};
class CountingBackend : public CpuBackend {
 public:
  explicit CountingBackend(AttentionCounts& counts)
      : CpuBackend(CpuMode::Reference), counts_(counts) {}
  void attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const AttentionShape& shape, const Segments& q_seg,
                         const KeyRows& k_rows) override {
    ++counts_.forward;
    CpuBackend::attention_forward(o, lse, q, k, v, shape, q_seg, k_rows);
  }
  void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                          const Tensor& lse, const AttentionShape& shape, const Segments& seg,
                          const Rotation* rotation) override {
    ++counts_.backward;
    CpuBackend::attention_backward(dq, dk, dv, dout, q, k, v, o, lse, shape, seg, rotation);
  }

 private:
  AttentionCounts& counts_;  // outlives the backend
};

struct Setting {
  DType dtype = DType::F32;
  float dropout = 0;
  bool joined = false, record = true;
  int micro_batches = 1;
  std::vector<std::string> targets = {"all-linear"};
  std::string family = "llama";
  bool dora = false, quantised = false;
  std::int64_t rank = 4;  // kernels take multiples of 8
};

// Losses, gradient norms, all gradients and adapters of a few steps, and the last step's peak
// bytes.
struct Trained {
  std::vector<double> numbers;
  std::vector<std::vector<double>> tensors;
  std::int64_t peak_bytes = 0, activation_bytes = 0, recorded = 0, host_bytes = 0;
};

constexpr std::int64_t kLayers = 5;
constexpr unsigned kSteps = 3;

Trained train(std::unique_ptr<Backend> backend, const Setting& s, const std::string& recompute) {
  ModelConfig config = tiny_config();
  config.n_layers = kLayers;
  config = as_family(config, s.family);
  ModelWeights weights = random_weights(*backend, config, s.dtype, 7);
  if (s.quantised) quantise_weights(*backend, config, weights, {BasePrecision::Nf4, {"k_proj"}});
  Transformer model(*backend, config, std::move(weights), s.dtype, 256);
  LoraConfig lora = tiny_lora(s.targets);
  lora.shape.rank = s.rank;
  lora.shape.dora = s.dora;
  lora.shape.dropout = s.dropout;
  Adapter adapter(model, lora);
  randomize_b(adapter, 11, 0.5);
  if (s.joined && !backend->traits().joins_projections) REQUIRE(join_projections(model, adapter));
  if (backend->traits().joins_projections) adapter.lay_out_for_training();
  model.set_recompute(parse_recompute(recompute));
  TrainerConfig training;
  training.schedule = {ScheduleKind::Cosine, 0.02, 1, kSteps};
  training.seed = 5;
  training.record = s.record;
  Trainer trainer(model, adapter, training);
  const std::int64_t weights_bytes = backend->ledger()[Tag::Weights].live_bytes;
  Trained t;
  for (unsigned step = 0; step < kSteps; ++step) {
    backend->ledger().reset_peaks();
    // Several documents a micro-batch: attention must not cross, positions restart.
    std::vector<Row> rows = random_rows({9, 40, 3}, 20 + step);
    std::vector<std::vector<const Row*>> micro;
    for (int i = 0; i < s.micro_batches; ++i)
      micro.push_back(i % 2 ? pointers(rows, 0, 2) : pointers(rows));
    const StepReport r = trainer.step(micro);
    t.numbers.push_back(r.loss), t.numbers.push_back(r.grad_norm);
    t.recorded += r.recorded;
    for (const Parameter* p : adapter.parameters()) t.tensors.push_back(to_host_f64(p->grad()));
  }
  for (const Parameter* p : adapter.parameters()) t.tensors.push_back(to_host_f64(p->value()));
  t.peak_bytes = backend->ledger().total().peak_bytes;
  t.activation_bytes = backend->ledger()[Tag::Activations].peak_bytes;
  t.host_bytes = backend->offloaded().total().peak_bytes;
  // The equalities of every run: no extra weight gradient, and no gradient that is not A's or B's.
  prove_memory(*backend, adapter, weights_bytes, backend->weight_gradient_matmuls(),
               kSteps * s.micro_batches);
  return t;
}

void check_same(const Trained& got, const Trained& want) {
  CHECK(got.numbers == want.numbers);
  CHECK(got.tensors == want.tensors);
}

}  // namespace

TEST_CASE("recompute settings are written as they are read, and others refused") {
  for (const char* text :
       {"none", "gate-up", "keep-attention", "block", "offload", "gate-up:3", "gate-up,block:4",
        "gate-up,keep-attention:4,block:2", "gate-up:7,block:4,offload:1"})
    CHECK(recompute_text(parse_recompute(text)) == text);
  CHECK(parse_recompute("block:4,gate-up") == parse_recompute("gate-up,block:4"));
  for (const char* text : {"", "all", "block:0", "block:-1", "block:x", "block:", "block,block",
                           "none,block", "block,", "gate_up", "block:99999999999999999999"})
    CHECK_THROWS_AS(parse_recompute(text), UsageError);
  const Recompute r = parse_recompute("gate-up:3,block:2,offload:1");
  CHECK(r.of(0) == RecomputeKind::Block);
  CHECK(r.offloads(0, 5));
  CHECK(r.of(1) == RecomputeKind::Block);
  CHECK(!r.offloads(1, 5));
  CHECK(r.of(2) == RecomputeKind::GateUp);
  CHECK(r.of(3) == RecomputeKind::None);
  const Recompute mixed = parse_recompute("gate-up,keep-attention:3,block:2");
  CHECK(mixed.of(1) == RecomputeKind::Block);
  CHECK(mixed.of(2) == RecomputeKind::KeepAttention);
  CHECK(mixed.of(3) == RecomputeKind::GateUp);
  CHECK(parse_recompute("offload").of(4) == RecomputeKind::Block);
  CHECK(!parse_recompute("offload").offloads(4, 5));  // wanted at once
  CHECK(parse_recompute("keep-attention,offload").of(0) == RecomputeKind::KeepAttention);
}

TEST_CASE("losses, gradients and adapters are bit for bit those of no recomputation") {
  const std::vector<Setting> settings = {
      {},
      {DType::BF16},
      {DType::F32, 0.3f, false, true, 2},
      {DType::BF16, 0.3f},
      {DType::BF16, 0.3f, true, true, 2},
      {DType::BF16, 0, true, true, 3},
      {DType::F32, 0, false, true, 1, {"q_proj", "v_proj"}},
      {DType::F32, 0, false, true, 1, {"layers.2.mlp.down_proj", "layers.3.self_attn.q_proj"}},
      {DType::BF16, 0, true, true, 1, {"layers.2.mlp.down_proj", "layers.3.self_attn.q_proj"}},
      {DType::F32, 0, false, true, 1, {"layers.1.self_attn.o_proj"}},
      {DType::F32, 0, false, true, 2, {"all-linear"}, "llama", true, true},
      {DType::BF16, 0, true, true, 1, {"all-linear"}, "llama", true},
      {DType::BF16, 0.3f, true, true, 1, {"all-linear"}, "llama", false, true}};
  for (const Setting& s : settings) {
    // Joined models run on the plain twins, which compute in one order in any case; all others run
    // on the fast kernels, which are used in practice.
    const CpuMode mode = s.joined ? CpuMode::Reference : CpuMode::Fast;
    const std::string what = concat(dtype_name(s.dtype), " dropout ", s.dropout,
                                    s.joined ? " joined " : " ", s.micro_batches, " micro-batches ",
                                    s.targets[0], s.dora ? " dora" : "", s.quantised ? " nf4" : "");
    CAPTURE(what);
    const Trained want = train(make_cpu_backend(mode), s, "none");
    for (const char* recompute : {"gate-up", "gate-up:2", "keep-attention", "block", "block:1",
                                  "gate-up,block:3", "gate-up,keep-attention:3,block:1"}) {
      CAPTURE(recompute);
      check_same(train(make_cpu_backend(mode), s, recompute), want);
    }
  }
}

TEST_CASE("every family computes the same bits with every way of recomputing, and needs less") {
  for (const std::string& family : kFamilies)
    for (DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(family);
      const std::string of_dtype = dtype_name(dtype);
      CAPTURE(of_dtype);
      Setting s{dtype};
      s.family = family;
      const Trained want = train(make_cpu_backend(CpuMode::Fast), s, "none");
      std::int64_t bytes = want.activation_bytes;
      for (const char* recompute : {"gate-up", "gate-up,keep-attention:3", "keep-attention",
                                    "keep-attention,block:3", "block"}) {
        CAPTURE(recompute);
        const Trained got = train(make_cpu_backend(CpuMode::Fast), s, recompute);
        check_same(got, want);
        CHECK(got.activation_bytes < bytes);
        bytes = got.activation_bytes;
      }
      const Trained plain = train(make_cpu_backend(CpuMode::Reference), s, "none");
      for (const char* recompute : {"keep-attention,offload", "offload"}) {
        const Trained offloaded = train(std::make_unique<OffloadingBackend>(), s, recompute);
        check_same(offloaded, plain);
        CHECK(offloaded.activation_bytes < bytes);
      }
    }
}

TEST_CASE("each step of the ladder needs less memory than the one before") {
  for (bool joined : {false, true}) {
    CAPTURE(joined);
    const Setting s{joined ? DType::BF16 : DType::F32, 0, joined};
    auto activations = [&](const std::string& recompute) {
      return train(std::make_unique<OffloadingBackend>(), s, recompute).activation_bytes;
    };
    // The last layer's way makes no difference: it runs again when all others are still kept.
    const std::vector<std::string> ladder = {"none",
                                             "gate-up:1",
                                             "gate-up:4",
                                             "gate-up,keep-attention:1",
                                             "gate-up,keep-attention:4",
                                             "keep-attention,block:1",
                                             "keep-attention,block:4",
                                             "block,offload:1",
                                             "offload"};
    std::vector<std::int64_t> bytes;
    for (const std::string& r : ladder) bytes.push_back(activations(r));
    for (std::size_t i = 1; i < bytes.size(); ++i) {
      CAPTURE(ladder[i]);
      CHECK(bytes[i] < bytes[i - 1]);
    }
  }
}

TEST_CASE("a block that keeps attention's outputs computes attention once a step") {
  for (const std::string& family : kFamilies)
    for (bool joined : {false, true}) {
      CAPTURE(family);
      CAPTURE(joined);
      Setting s{joined ? DType::BF16 : DType::F32, 0, joined, true, 2};
      s.family = family;
      auto counts = [&](const std::string& recompute) {
        AttentionCounts c;
        train(std::make_unique<CountingBackend>(c), s, recompute);
        CHECK(c.backward == static_cast<int>(kSteps * kLayers) * s.micro_batches);
        return c.forward;
      };
      const int once = static_cast<int>(kSteps * kLayers) * s.micro_batches;
      for (const char* recompute :
           {"none", "gate-up", "keep-attention", "gate-up,keep-attention:2"})
        CHECK(counts(recompute) == once);
      CHECK(counts("block") == 2 * once);
      CHECK(counts("keep-attention,block:2") == once + 2 * once / static_cast<int>(kLayers));
    }
}

TEST_CASE("offloaded inputs come back bit for bit, one block ahead, and the last never leaves") {
  for (const Setting& s :
       {Setting{}, Setting{DType::BF16, 0, true, true, 2},
        Setting{DType::BF16, 0.3f, false, true, 2}, Setting{DType::F32, 0.3f, false, true, 2}}) {
    const Trained want = train(make_cpu_backend(CpuMode::Reference), s, "none");
    for (const char* recompute :
         {"offload", "offload:2", "gate-up,block:4,offload:3", "keep-attention,offload:2",
          "keep-attention,offload", "keep-attention,block:2,offload:3"}) {
      CAPTURE(recompute);
      struct Counts {
        int most_waiting, most_on_the_way, total, left;
      };
      Counts counts{};  // outlives the backend that fills it
      struct Watched : OffloadingBackend {
        Counts& out;
        explicit Watched(Counts& c) : out(c) {}
        ~Watched() override { out = {most_waiting, most_on_the_way, total, waiting}; }
      };
      check_same(train(std::make_unique<Watched>(counts), s, recompute), want);
      const Recompute r = parse_recompute(recompute);
      // A block sends its input, and attention's output if that is kept. While it runs again, that
      // output and all of the block before it may be on their way.
      int sent = 0, before = 0, most_on_the_way = 0;
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        const bool offloads = r.offloads(layer, kLayers);
        const int o = offloads && r.of(layer) == RecomputeKind::KeepAttention ? 1 : 0;
        most_on_the_way = std::max(most_on_the_way, before + o);
        before = offloads ? 1 + o : 0;
        sent += before;
      }
      CHECK(counts.most_waiting == sent);
      CHECK(counts.most_on_the_way == most_on_the_way);
      CHECK(counts.total == static_cast<int>(kSteps) * s.micro_batches * sent);
      CHECK(counts.left == 0);
    }
  }
}

TEST_CASE("dropout's masks are kept from a block's last forward to its backward, and no longer") {
  Setting with{DType::BF16, 0.3f, true, true, 2};
  with.rank = 8;
  Setting without = with;
  without.dropout = 0;
  const Trained want = train(make_cpu_backend(CpuMode::Reference), with, "none");
  const int products = static_cast<int>(kSteps * kLayers) * 4 * with.micro_batches;
  // One tile of 64 tokens x 128 columns for each of seven projections.
  constexpr std::int64_t kLayerBytes = 7 * 64 * 128 / 8;
  struct Case {
    const char* recompute;
    int twice;           // products of those that forward runs twice
    std::int64_t bytes;  // live at once
  };
  for (const Case& c :
       {Case{"none", 0, kLayers * kLayerBytes},
        {"gate-up", products / 2, kLayers * kLayerBytes * 4 / 7 + kLayerBytes * 3 / 7},
        {"gate-up,block:3", products * 4 / 5, 0},
        {"keep-attention", products, kLayerBytes},
        {"block", products, kLayerBytes}}) {
    CAPTURE(c.recompute);
    KeepingBackend::Counts counts, nothing;
    const Trained got = train(std::make_unique<KeepingBackend>(counts), with, c.recompute);
    check_same(got, want);
    CHECK(counts.intact);
    CHECK(counts.kept == products);
    CHECK(counts.not_kept == c.twice);
    CHECK(counts.kept_bytes ==
          static_cast<int>(kSteps) * with.micro_batches * kLayers * kLayerBytes);
    // For dA and for dx, which the first layer's input has no need of.
    CHECK(counts.read == 2 * products - static_cast<int>(kSteps) * with.micro_batches);
    const Trained bare = train(std::make_unique<KeepingBackend>(nothing), without, c.recompute);
    CHECK(nothing.kept + nothing.not_kept + nothing.read == 0);
    if (c.bytes > 0) CHECK(got.activation_bytes - bare.activation_bytes == c.bytes);
  }
}

TEST_CASE("offload is refused where there is no other memory") {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  CHECK_THROWS_AS(model->set_recompute(parse_recompute("offload:1")), UsageError);
  CHECK_THROWS_AS(backend->offload(backend->empty(Tag::Workspace, DType::F32, {4})), UsageError);
  CHECK_NOTHROW(model->set_recompute(parse_recompute("block")));
}

TEST_CASE("evaluation and logits keep nothing and so run nothing again") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora());
  const std::vector<Row> rows = random_rows({9, 17}, 5);
  TokenBatch batch = make_batch(*backend, pointers(rows));
  const std::vector<double> want = to_host_f64(model->logits(batch));
  model->set_recompute(parse_recompute("block"));
  CHECK(to_host_f64(model->logits(batch)) == want);
  Tape tape(*backend, Tape::Mode::NoGrad);
  CHECK(!model->loss(tape, batch, 1, {}).needs_grad());
  CHECK(tape.n_nodes() == 0);
}

TEST_CASE("a block below the first adapter records nothing, also with recomputation") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, tiny_lora({"layers.1.self_attn.q_proj"}));
  model->set_recompute(parse_recompute("block"));
  const std::vector<Row> rows = random_rows({9}, 5);
  TokenBatch batch = make_batch(*backend, pointers(rows));
  Tape tape(*backend);
  Var loss = model->loss(tape, batch, 1, {});
  CHECK(tape.node_names() ==
        std::vector<std::string>{"checkpoint", "gather_rows", "rmsnorm", "loss"});
  tape.backward(loss);
}

TEST_CASE("cuda: every family computes the same bits with every way of recomputing") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  for (const std::string& family : kFamilies)
    for (DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(family);
      Setting s{dtype};
      s.family = family;
      const Trained want = train(open_device("auto"), s, "none");
      for (const char* recompute :
           {"gate-up", "gate-up,block:3", "keep-attention", "block", "offload"}) {
        CAPTURE(recompute);
        check_same(train(open_device("auto"), s, recompute), want);
      }
    }
}

TEST_CASE("cuda: recomputation gives the same bits, recorded or not, joined or not") {
  if (n_gpus() == 0) LK_SKIP("no GPU");
  for (const Setting& s :
       {Setting{DType::BF16, 0, true, true, 2}, Setting{DType::F32},
        Setting{DType::BF16, 0.3f, false, true, 2},
        Setting{DType::BF16, 0.3f, true, true, 2, {"all-linear"}, "llama", false, false, 8},
        Setting{DType::BF16, 0.3f, true, true, 1, {"q_proj", "v_proj"}, "llama", false, true, 16},
        Setting{DType::BF16, 0, true, true, 1, {"all-linear"}, "llama", true},
        Setting{DType::BF16, 0, true, true, 1, {"all-linear"}, "llama", false, true}}) {
    Setting one_by_one = s;
    one_by_one.record = false;
    const Trained want = train(open_device("auto"), one_by_one, "none");
    for (const char* recompute :
         {"none", "gate-up", "gate-up,block:3", "keep-attention",
          "gate-up,keep-attention:3,block:1", "block", "offload", "keep-attention,offload:2",
          "keep-attention,offload", "offload:2"}) {
      CAPTURE(recompute);
      const Trained slow = train(open_device("auto"), one_by_one, recompute);
      check_same(slow, want);
      CHECK(slow.recorded == 0);
      const Trained fast = train(open_device("auto"), s, recompute);
      check_same(fast, want);
      CHECK(fast.recorded == kSteps - 1);
      const bool offloads = parse_recompute(recompute).offload > 0;
      CHECK((slow.host_bytes > 0) == offloads);
      CHECK((fast.host_bytes > 0) == offloads);
    }
  }
}
