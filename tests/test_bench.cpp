// The benches' own promises: would catch an op that a profile misses or that the kernel benches
// forgot, a profile that changes what it measures, and a frozen-GEMM limit of other products than
// the step's.
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "../bench/roofline.h"
#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "lora/trainer.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

constexpr bench::Roofs kRoofs = {1e12, 1e10};

LoraConfig all_linear() {
  LoraConfig c;
  c.shape = {4, 4, 0};
  c.targets = {"all-linear"};
  return c;
}

// Losses of three steps, and A and B after them.
struct Trained {
  std::vector<double> losses;
  std::vector<std::vector<float>> parameters;
  std::vector<std::string> adapted;
};
Trained train(Backend& backend, const ModelWeights& weights, DType dtype,
              const std::function<void(int)>& before_step) {
  Transformer model(backend, tiny_config(), weights, dtype, 256);
  Adapter adapter(model, all_linear());
  TrainerConfig config;
  config.schedule = {ScheduleKind::Constant, 0.02, 0, 3};
  Trainer trainer(model, adapter, config);
  std::vector<Row> rows = random_rows({9, 30}, 8);
  std::vector<std::vector<const Row*>> micro = {pointers(rows)};
  Trained t;
  for (int i = 0; i < 3; ++i) {
    before_step(i);
    t.losses.push_back(trainer.step(micro).loss);
  }
  for (const Parameter* p : adapter.parameters())
    t.parameters.push_back(to_host<float>(p->value()));
  for (const LoraLinear* layer : adapter.layers()) t.adapted.push_back(layer->path());
  return t;
}

// Where the sources were when this was built; on another machine they may be missing.
const std::string kSources = std::string(LK_TEST_DATA) + "/../";

std::string read(const std::string& path) {
  std::ifstream file(kSources + path);
  REQUIRE_MESSAGE(file.good(), path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The CPU, and a GPU if there is one.
std::vector<std::string> devices() {
  std::vector<std::string> names = {"cpu"};
  if (n_gpus() > 0) names.push_back("cuda:0");
  return names;
}

// The names of Backend's ops.
std::set<std::string> backend_ops() {
#define LK_NAME(op, parameters, arguments) #op,
  return {LK_BACKEND_OPS(LK_NAME)};
#undef LK_NAME
}
// The names of the virtual functions that a header of src/tensor/ declares, except Backend's ops.
std::set<std::string> virtuals(const std::string& header) {
  const std::string text = read("src/tensor/" + header);
  const std::regex declaration(R"(virtual [\w:<>* ]+?(\w+)\()");
  std::set<std::string> names;
  std::ptrdiff_t found = 0;
  for (std::sregex_iterator i(text.begin(), text.end(), declaration), end; i != end; ++i, ++found)
    names.insert((*i)[1]);
  // Every `virtual` was recognised, except the destructor's.
  const std::regex word(R"(\bvirtual\b)");
  REQUIRE(found == std::distance(std::sregex_iterator(text.begin(), text.end(), word), {}) - 1);
  for (const std::string& op : backend_ops()) names.erase(op);
  return names;
}

}  // namespace

TEST_CASE("a device's clock counts forward from its first mark, and forgets once it was read") {
  for (const std::string& device : devices()) {
    CAPTURE(device);
    auto backend = open_device(device);
    std::unique_ptr<DeviceClock> clock = backend->make_clock();
    CHECK(clock->read().empty());
    Tensor x = backend->empty(Tag::Workspace, DType::F32, {1 << 22});
    for (int round = 0; round < 2; ++round) {
      clock->mark();
      backend->fill(x, 1);
      clock->mark();
      clock->mark();
      const std::vector<double> at = clock->read();
      REQUIRE(at.size() == 3);
      CHECK(at[0] == 0);
      CHECK(at[1] > 0);  // 16 MiB are not written in no time
      CHECK(at[2] >= at[1]);
      CHECK(at[2] < 10);
    }
  }
}

TEST_CASE("a timing backend gives the same bits and the same books, and its parts make the whole") {
  for (const std::string& device : devices())
    for (DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(device);
      const std::string of_dtype = dtype_name(dtype);
      CAPTURE(of_dtype);
      auto plain = open_device(device), inner = open_device(device);
      const ModelWeights weights = random_weights(*inner, tiny_config(), dtype, 7);
      Trained want =
          train(*plain, random_weights(*plain, tiny_config(), dtype, 7), dtype, [](int) {});
      bench::TimingBackend timing(*inner, kRoofs, weights.head);
      Trained got = train(timing, weights, dtype, [&](int i) {
        if (i == 2) timing.start();
      });
      bench::Profile profile = timing.finish();
      CHECK(got.losses == want.losses);
      CHECK(got.parameters == want.parameters);
      for (Tag tag : {Tag::Params, Tag::Activations, Tag::Gradients, Tag::Backward, Tag::Optimizer})
        CHECK(timing.ledger()[tag].peak_bytes == plain->ledger()[tag].peak_bytes);
      CHECK(timing.weight_gradient_matmuls() == plain->weight_gradient_matmuls());

      double sum = 0;
      for (const bench::FamilyTime& f : profile.families) sum += f.seconds;
      CHECK(sum == doctest::Approx(profile.busy_seconds));
      CHECK(profile.busy_seconds <= profile.seconds);
    }
}

TEST_CASE("a profile notes every op of a step, with the work that the maths asks for") {
  auto inner = make_cpu_backend();
  const ModelConfig config = tiny_config();
  const ModelWeights weights = random_weights(*inner, config, DType::F32, 7);
  bench::TimingBackend timing(*inner, kRoofs, weights.head);
  Transformer model(timing, config, weights, DType::F32, 256);
  Adapter adapter(model, all_linear());
  Trainer trainer(model, adapter, {});
  std::vector<Row> rows = random_rows({9, 30}, 8);
  for (Row& row : rows) row.supervised.assign(row.ids.size(), 1);
  std::vector<std::vector<const Row*>> micro = {pointers(rows)};
  timing.start();
  trainer.step(micro);
  const bench::Profile step = timing.finish();
  auto family = [](const bench::Profile& p, OpFamily f) {
    return p.families[static_cast<std::size_t>(f)];
  };
  const std::int64_t L = config.n_layers, T = 39, n = 37;  // n: a row's last token has no target
  auto flops = [](std::int64_t tokens, std::int64_t numbers) {
    return 2.0 * static_cast<double>(tokens * numbers);
  };
  const std::int64_t C = config.hidden_size, QKV = config.q_size() + 2 * config.kv_size(),
                     head = config.vocab_size * C, layers = bench::matmul_parameters(config) - head;

  // Nobody asks for the gradient of the first layer's input: three dX less.
  CHECK(family(step, OpFamily::BaseLinear).calls == 14 * L - 3);
  CHECK(family(step, OpFamily::BaseLinear).flops == 2 * flops(T, layers) - flops(T, QKV * C));
  CHECK(family(step, OpFamily::Head).calls == 2);
  CHECK(family(step, OpFamily::Head).flops == 2 * flops(n, head));
  CHECK(family(step, OpFamily::Lora).calls == 6 * 7 * L - 3);
  CHECK(family(step, OpFamily::Norm).calls == 2 * (2 * L + 1) - 1);
  CHECK(family(step, OpFamily::Rope).calls == 4 * L);
  CHECK(family(step, OpFamily::Gated).calls == 2 * L);
  CHECK(family(step, OpFamily::Optimizer).calls == 2);
  const double pairs = 9 * 10 / 2 + 30 * 31 / 2;
  const double product = 2 * pairs * static_cast<double>(config.q_size() * L);
  CHECK(family(step, OpFamily::AttentionForward).flops == 2 * product);
  CHECK(family(step, OpFamily::AttentionBackward).flops == 5 * product);

  // The limit is a sweep over the step's own frozen products (here two: one warms up).
  std::vector<std::string> adapted;
  for (const LoraLinear* layer : adapter.layers()) adapted.push_back(layer->path());
  timing.start();
  CHECK(bench::frozen_gemm_seconds(timing, weights, DType::F32, adapted, T, 1) > 0);
  const bench::Profile limit = timing.finish();
  CHECK(family(limit, OpFamily::BaseLinear).calls == 2 * family(step, OpFamily::BaseLinear).calls);
  CHECK(family(limit, OpFamily::BaseLinear).flops == 2 * family(step, OpFamily::BaseLinear).flops);
  CHECK(family(limit, OpFamily::Head).flops == 2 * 2 * flops(T, head));
  CHECK(family(limit, OpFamily::Lora).calls == 0);
}

TEST_CASE("the frozen-GEMM limit leaves out each dX that nothing trainable lies before") {
  auto inner = make_cpu_backend();
  const ModelWeights weights = random_weights(*inner, tiny_config(), DType::F32, 7);
  bench::TimingBackend timing(*inner, kRoofs, weights.head);
  auto calls = [&](const std::vector<std::string>& adapted) {
    timing.start();
    bench::frozen_gemm_seconds(timing, weights, DType::F32, adapted, 16, 1);
    return timing.finish().families[static_cast<std::size_t>(OpFamily::BaseLinear)].calls / 2;
  };
  CHECK(calls({}) == 14);
  CHECK(calls({"model.layers.1.mlp.down_proj"}) == 14);  // the last: only the head has a dX
  CHECK(calls({"model.layers.1.mlp.up_proj"}) == 14 + 1);
  CHECK(calls({"model.layers.0.mlp.down_proj"}) == 14 + 7);
  CHECK(calls({"model.layers.0.self_attn.q_proj"}) == 14 + 11);
}

TEST_CASE(
    "every virtual function of Backend and of its kernels is handed on by the timing backend") {
  if (!std::filesystem::exists(kSources)) LK_SKIP("the sources are not at " + kSources);
  for (const auto& [header, timing] : {std::pair{"backend.h", "bench/timing_backend.h"},
                                       {"lora_kernels.h", "bench/timing_backend.cpp"},
                                       {"cache_kernels.h", "bench/timing_backend.cpp"},
                                       {"adapter_kernels.h", "bench/timing_backend.cpp"},
                                       {"shared_keys.h", "bench/timing_backend.cpp"},
                                       {"dora_kernels.h", "bench/timing_backend.cpp"},
                                       {"slice_kernels.h", "bench/timing_backend.cpp"}}) {
    const std::string text = read(timing);
    const std::set<std::string> names = virtuals(header);
    CHECK(!names.empty());
    for (const std::string& name : names) {
      CAPTURE(name);
      CHECK(std::regex_search(text, std::regex("\\b" + name + R"(\([^;{]*\)[\w ]* override)")));
    }
  }
}

TEST_CASE("every op of Backend and of its kernels has a benchmark on the CPU and on the GPU") {
  if (!std::filesystem::exists(kSources)) LK_SKIP("the sources are not at " + kSources);
  std::set<std::string> ops = backend_ops();
  CHECK(ops.size() > 25);
  for (const char* name : {"weight_gradient", "upload", "download", "upload_made", "look_at"})
    ops.insert(name);
  const std::string shared = read("bench/kernel_cases.cpp");  // both benches time these
  for (const std::string& name : virtuals("slice_kernels.h"))
    CHECK(shared.find("slice_kernels()->" + name + "(") != std::string::npos);
  std::erase_if(ops, [&](const std::string& op) {
    return shared.find("on." + op + "(") != std::string::npos;
  });
  std::set<std::string> calls;
  for (const std::string& op : ops) calls.insert("()." + op + "(");
  for (const std::string& name : virtuals("lora_kernels.h"))
    calls.insert("thin::" + (name.starts_with("run_") ? name.substr(4) : name) + "(");
  for (const std::string& name : virtuals("cache_kernels.h")) calls.insert("cached::" + name + "(");
  for (const std::string& name : virtuals("adapter_kernels.h"))
    calls.insert("adapter_kernels()->" + name + "(");
  for (const std::string& name : virtuals("shared_keys.h"))
    calls.insert("shared_key_kernels()->" + name + "(");
  for (const std::string device : {"cpu", "cuda"}) {
    std::string text;  // of all files of that device's bench
    for (const auto& entry : std::filesystem::directory_iterator(kSources + "/bench"))
      if (entry.path().filename().string().find(device + "_kernels") != std::string::npos)
        text += read("bench/" + entry.path().filename().string());
    for (const std::string& call : calls) {
      CAPTURE(device);
      CAPTURE(call);
      CHECK(text.find(call) != std::string::npos);
    }
  }
}
