// Many adapters over one base: would catch a row that gets a neighbour's adapter, an adapter whose
// rank or targets leak into others, and a base that changes.
#include <filesystem>

#include "cpu/cpu_backend.h"
#include "hostile.h"
#include "io/durable.h"
#include "io/ggml_blocks.h"
#include "io/ggml_encode.h"
#include "io/safetensors.h"
#include "lora/adapter_set.h"
#include "nn/generate.h"
#include "parity.h"
#include "run/inference.h"
#include "smollm2.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

struct Folder {
  ScratchFolder scratch;
  stdfs::path path = scratch.path();
};

// Writes an adapter with random A and B for the model's shapes.
std::string write_adapter(const Folder& f, const std::string& name, std::int64_t rank,
                          std::vector<std::string> targets, unsigned seed, double scale,
                          const ModelConfig& shape = tiny_config()) {
  auto backend = make_cpu_backend();
  auto model = std::make_unique<Transformer>(
      *backend, shape, random_weights(*backend, shape, DType::F32, 7), DType::F32, 64);
  LoraConfig config;
  config.shape = {rank, 2.0 * static_cast<double>(rank), 0};
  config.targets = std::move(targets);
  config.seed = seed;
  if (name == "mlp")  // some of its modules have a rank and alpha of their own
    model->visit_sites([&](const std::string& path, std::size_t, Site, auto&) {
      if (path.ends_with("down_proj") || path.ends_with("c_fc")) config.exceptions[path] = {3, 20};
    });
  Adapter adapter(*model, config);
  randomize_b(adapter, seed, scale);
  const std::string folder = (f.path / name).string();
  stdfs::create_directories(folder);
  save_adapter(folder, adapter, "tiny", "");
  return folder;
}

struct Spec {
  const char* name;
  std::int64_t rank;
  std::vector<std::string> targets;
};
std::vector<Spec> specs(const std::string& family) {
  const bool gpt2 = family == "gpt2";
  return {
      {"wide", 7, {"all-linear"}},
      {"narrow", 1,
       gpt2 ? std::vector<std::string>{"c_attn"} : std::vector<std::string>{"q_proj", "v_proj"}},
      {"mlp", 4,
       gpt2 ? std::vector<std::string>{"h.1.mlp.c_proj", "c_fc"}
            : std::vector<std::string>{"layers.1.mlp.down_proj", "gate_proj"}}};
}

// All of them, each with numbers of its own; their folders.
std::vector<std::string> write_adapters(const Folder& f, const std::vector<Spec>& adapters,
                                        const ModelConfig& shape) {
  std::vector<std::string> folders;
  for (const Spec& one : adapters)
    folders.push_back(write_adapter(f, one.name, one.rank, one.targets,
                                    10 * static_cast<unsigned>(folders.size()) + 1, 0.2, shape));
  return folders;
}

// A model whose matrices are whole blocks, twice: kept quantised, and dense with the same values.
ModelConfig block_config() {
  ModelConfig c = tiny_config();
  c.hidden_size = 64, c.intermediate_size = 96, c.head_dim = 24;  // H * D = 96
  return c;
}
std::unique_ptr<Transformer> block_transformer(Backend& backend, DType dtype, const char* type,
                                               bool quantised) {
  const ModelConfig config = block_config();
  const GgmlEncoder& encoder = *find_ggml_encoder(type);
  const GgmlType& stored = *find_ggml_type(encoder.id);
  auto host = make_cpu_backend();
  ModelWeights from = random_weights(*host, config, DType::F32, 7), to;
  const std::vector<WeightSlot> sources = weight_slots(config, from);
  const std::vector<WeightSlot> slots = weight_slots(config, to);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const WeightSlot& slot = slots[i];
    std::vector<float> values = to_host<float>(sources[i].weight->values());
    const std::int64_t n = std::ssize(values);
    if (slot.shape.rank() == 2) {
      std::vector<std::uint8_t> blocks(static_cast<std::size_t>(stored.row_bytes(n)));
      encoder.encode(values.data(), n / encoder.block_values, blocks.data());
      stored.decode(blocks.data(), n / stored.block_values, values.data());
      if (quantised) {
        Tensor t = backend.empty(Tag::Weights, DType::U8,
                                 {slot.shape[0], stored.row_bytes(slot.shape[1])});
        backend.upload(t, blocks.data(), blocks.size());
        *slot.weight = Weight(slot.name, of_blocks(t, stored), slot.shape, dtype);
        if (slot.linear) backend.prepare_linear(*slot.weight);
        continue;
      }
    }
    *slot.weight =
        Weight(slot.name, tensor_from(backend, dtype, slot.shape, {values.begin(), values.end()}));
  }
  if (config.tie_embeddings) tie_head(backend, to);
  return std::make_unique<Transformer>(backend, config, std::move(to), dtype, 64);
}

std::vector<SequencePart> parts_with(const std::vector<Row>& rows,
                                     const std::vector<std::int32_t>& variants, bool one_token) {
  std::vector<SequencePart> parts;
  for (std::size_t i = 0; i < rows.size(); ++i)
    parts.push_back({static_cast<std::int64_t>(i),
                     one_token ? std::vector<std::int32_t>{5} : rows[i].ids, variants[i]});
  return parts;
}

}  // namespace

namespace {

void check_mixed_batch(const std::string& family) {
  CAPTURE(family);
  Folder f;
  const std::vector<Spec> adapters = specs(family);
  const std::vector<std::string> folders =
      write_adapters(f, adapters, as_family(tiny_config(), family));
  auto backend = make_cpu_backend(CpuMode::Reference);
  std::vector<Row> rows = random_rows({9, 3, 14, 1, 6, 2}, 3);
  const std::vector<std::int32_t> variants{0, -1, 1, 2, 0, 2};

  auto model = tiny_transformer(*backend, DType::F64, 7, family);
  AdapterSet set(*model);
  for (std::size_t i = 0; i < folders.size(); ++i)
    CHECK(set.add(adapters[i].name, open_adapter(folders[i])) == static_cast<std::int32_t>(i));
  CHECK(set.find("mlp") == 2);
  CHECK(set.find("none") == -1);
  if (family == "llama")
    CHECK(set.adapters()[0].bytes == 8 * 7 * 2 * ((24 + 32) + 2 * (24 + 16) + (32 + 24) + 3 * 64));
  CHECK_THROWS_AS(set.add("mlp", open_adapter(folders[2])), UsageError);
  KvCache cache(*backend, model->config(), DType::F64, 20, std::ssize(rows));
  std::vector<std::vector<double>> got;
  for (bool one_token : {false, true}) {
    const auto parts = parts_with(rows, variants, one_token);
    got.push_back(to_host_f64(model->next_logits(make_cached_batch(cache, parts), cache)));
    advance_cache(cache, parts);
  }
  double least_difference = 1e300;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto single = tiny_transformer(*backend, DType::F64, 7, family);
    std::unique_ptr<Adapter> adapter;
    if (variants[i] >= 0) {
      AdapterFile file = open_adapter(folders[static_cast<std::size_t>(variants[i])]);
      adapter = attach_adapter(*single, file, file.config, false);
    }
    std::vector<std::int32_t> ids = rows[i].ids;
    for (std::size_t step = 0; step < 2; ++step) {
      const std::vector<double> all = to_host_f64(single->logits(make_prompt(*backend, ids, 0)));
      const std::vector<double> want(all.end() - 61, all.end());
      const std::vector<double> mine(got[step].begin() + static_cast<std::ptrdiff_t>(61 * i),
                                     got[step].begin() + static_cast<std::ptrdiff_t>(61 * (i + 1)));
      // Same sums in another order, and scale as a float.
      check_close(mine, want, 1e-7, {1e-7}, concat("row ", i, " step ", step));
      if (adapter) {
        adapter->set_enabled(false);
        const std::vector<double> base = to_host_f64(single->logits(make_prompt(*backend, ids, 0)));
        adapter->set_enabled(true);
        double difference = 0;
        for (std::size_t j = 0; j < 61; ++j)
          difference = std::max(difference, std::abs(base[base.size() - 61 + j] - want[j]));
        least_difference = std::min(least_difference, difference);
      }
      ids.push_back(5);
    }
  }
  CHECK(least_difference > 1e-3);  // or the adapters would prove nothing
}

}  // namespace

TEST_CASE("each row of a mixed batch gets what its own adapter alone gives it, F64, every family") {
  for (const std::string& family : kFamilies) check_mixed_batch(family);
}

TEST_CASE("adapters over quantised weights equal adapters over their dense values, F64") {
  Folder f;
  const std::vector<std::string> folders = write_adapters(f, specs("llama"), block_config());
  auto backend = make_cpu_backend(CpuMode::Reference);
  std::vector<Row> rows = random_rows({9, 3, 14, 1, 6}, 3);
  const std::vector<std::int32_t> variants{0, -1, 1, 2, 0};
  for (const char* type : {"Q8_0", "Q4_1"}) {
    auto quantised = block_transformer(*backend, DType::F64, type, true);
    AdapterSet set(*quantised);
    for (const std::string& folder : folders) set.add(folder, open_adapter(folder));
    KvCache cache(*backend, quantised->config(), DType::F64, 20, std::ssize(rows));
    const auto parts = parts_with(rows, variants, false);
    const std::vector<double> got =
        to_host_f64(quantised->next_logits(make_cached_batch(cache, parts), cache));
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (bool kept : {false, true}) {  // one adapter alone, over dense and over quantised weights
        auto single = block_transformer(*backend, DType::F64, type, kept);
        std::unique_ptr<Adapter> adapter;
        if (variants[i] >= 0) {
          AdapterFile file = open_adapter(folders[static_cast<std::size_t>(variants[i])]);
          adapter = attach_adapter(*single, file, file.config, false);
        }
        const std::vector<double> all =
            to_host_f64(single->logits(make_prompt(*backend, rows[i].ids, 0)));
        // Same sums in another order, and scale as a float.
        check_close({got.begin() + static_cast<std::ptrdiff_t>(61 * i),
                     got.begin() + static_cast<std::ptrdiff_t>(61 * (i + 1))},
                    {all.end() - 61, all.end()}, 1e-7, {1e-7}, concat(type, " row ", i, kept));
      }
  }
}

TEST_CASE("a projection with adapters over quantised weights is off by its activations' rounding") {
  auto backend = make_cpu_backend(), exact = make_cpu_backend(CpuMode::Reference);
  if (!backend->keeps_quantised(*find_ggml_type(2))) LK_SKIP("no kernels for quantised weights");
  Folder f;
  const std::vector<std::string> folders = write_adapters(f, specs("llama"), block_config());
  const std::vector<std::int32_t> offsets{0, 1, 2, 11, 12, 20}, which{0, -1, 1, 2, 0};
  for (const char* type : {"Q8_0", "Q4_0"}) {
    auto quantised = block_transformer(*backend, DType::F32, type, true);
    auto dense = block_transformer(*exact, DType::F64, type, false);
    AdapterSet fast_set(*quantised), exact_set(*dense);
    for (const std::string& folder : folders)
      fast_set.add(folder, open_adapter(folder)), exact_set.add(folder, open_adapter(folder));
    struct Result {
      std::vector<double> y, x, w;
    };
    auto products = [&](Transformer& model, Backend& b) {
      std::vector<Result> results;
      const Segments segments = make_segments(b, offsets);
      const RowVariants variants{which, to_device(b, Tag::Workspace, which)};
      const ForwardMode mode{.documents = &segments, .variants = &variants};
      model.visit_sites([&](const std::string&, std::size_t layer, Site site, auto& map) {
        const std::int64_t K = map->in_features();
        const std::vector<double> x =
            random_values(20 * K, static_cast<unsigned>(10 * layer) + static_cast<unsigned>(site));
        Tape tape(b, Tape::Mode::NoGrad);
        Var in = tape.constant(tensor_from(b, model.compute_dtype(), {20, K}, x));
        const Weight& w = map->frozen().weight();
        results.push_back({to_host_f64(map->apply(tape, in, mode).value()), to_host_f64(in.value()),
                           w.quantised() ? std::vector<double>{} : to_host_f64(w.values())});
      });
      return results;
    };
    const auto got = products(*quantised, *backend), want = products(*dense, *exact);
    for (std::size_t s = 0; s < got.size(); ++s) {
      const auto K = got[s].x.size() / 20, N = got[s].y.size() / 20;
      std::vector<double> slack;
      for (std::size_t m = 0; m < 20; ++m)
        for (std::size_t n = 0; n < N; ++n) {
          double bound = 0;
          for (std::size_t k = 0; k < K; k += 32) {
            double top = 0, weights = 0, size = 0;
            for (std::size_t i = k; i < k + 32; ++i) {
              top = std::max(top, std::abs(got[s].x[m * K + i]));
              weights += std::abs(want[s].w[n * K + i]);
              size += std::abs(got[s].x[m * K + i] * want[s].w[n * K + i]);
            }
            // Half a step of the block; its scales and sums are floats.
            bound += weights * top / 254 * (1 + 1e-5) + 16 * 0x1p-24 * size;
          }
          slack.push_back(bound +
                          1e-5);  // the adapter's own sums: K + R products of at most 1 each
        }
      check_close(got[s].y, want[s].y, 0x1p-23, slack, concat(type, " site ", s));
    }
  }
}

TEST_CASE("the fast path of lora_segments has the twin's numbers, few rows and many") {
  auto reference = make_cpu_backend(CpuMode::Reference), fast = make_cpu_backend();
  const std::int64_t K = 70, N = 33;
  const std::vector<std::int32_t> offsets{0, 1, 1, 6, 8, 40}, which{2, 0, 1, -1, 0};
  for (DType dtype : {DType::F32, DType::BF16}) {
    auto run = [&](Backend& b, DType t) {
      auto numbers = [&](Shape shape, unsigned seed) {  // the same in every dtype
        Tensor rounded = random_tensor(*reference, dtype, shape, seed, 0.5);
        return tensor_from(b, t, shape, to_host_f64(rounded));
      };
      LoraTable table = make_lora_table(b, {{numbers({5, K}, 1), numbers({5, N}, 2), 2.0f},
                                            {numbers({16, K}, 3), numbers({16, N}, 4), 0.5f},
                                            {}});
      Tensor x = numbers({40, K}, 5), y = numbers({40, N}, 6);
      b.adapter_kernels()->lora_segments(y, x, table, make_segments(b, offsets),
                                         {which, to_device(b, Tag::Workspace, which)});
      return to_host_f64(y);
    };
    const std::vector<double> want = run(*reference, DType::F64), got = run(*fast, dtype);
    // |x| |a| |b| of 0.5 each: sums of 70 x 16 products of about 1/8, scale up to 2; s is rounded
    // once where there are many rows.
    const double u = unit_roundoff(dtype);
    check_close(got, want, u, {u * 70 + 86 * 0x1p-24 * 70}, concat("fast ", dtype_name(dtype)));
    // Rows without an adapter keep their bits.
    const std::vector<double> before =
        to_host_f64(random_tensor(*reference, dtype, {40, N}, 6, 0.5));
    for (std::size_t i = 0; i < 1 * 33; ++i) CHECK(got[i] == before[i]);
    for (std::size_t i = 6 * 33; i < 8 * 33; ++i) CHECK(got[i] == before[i]);
  }
}

TEST_CASE("100 adapters in one batch: tokens as each alone, and their memory is known") {
  Folder f;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  AdapterSet set(*model);
  const auto before = backend->ledger()[Tag::Weights].live_bytes;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 100; ++i) {
    const std::string folder = write_adapter(f, concat("a", i), 1 + i % 8,
                                             i % 3 ? std::vector<std::string>{"q_proj", "v_proj"}
                                                   : std::vector<std::string>{"all-linear"},
                                             static_cast<unsigned>(i + 1) * 50, 0.4);
    GenerationRequest r{{1, 2, static_cast<std::int32_t>(3 + i % 5)}, {}, -1};
    r.variant = set.add(concat("a", i), open_adapter(folder));
    r.sampling.max_tokens = 8;
    requests.push_back(r);
  }
  CHECK(backend->ledger()[Tag::Weights].live_bytes == before);
  const auto together = Generator(*model, nullptr, {.max_batch = 100}).run(requests);
  std::size_t unlike_base = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    Generator single(*model, nullptr);
    CHECK(single.run(std::span(&requests[i], 1))[0].ids == together[i].ids);
    GenerationRequest base = requests[i];
    base.variant = -1;
    unlike_base += single.run(std::span(&base, 1))[0].ids != together[i].ids;
  }
  CHECK(unlike_base > 50);
  // Choosing adapters for 100 documents takes their indices, and moves no weight.
  const Ledger& ledger = backend->ledger();
  const std::int64_t all = ledger.total().total_count, indices = ledger[Tag::Workspace].total_count;
  set.switch_seconds(100);
  CHECK(ledger.total().total_count == all + 1);
  CHECK(ledger[Tag::Workspace].total_count == indices + 1);
}

TEST_CASE("a set that ends leaves the base, and its places to an adapter") {
  Folder f;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  const std::string folder = write_adapter(f, "a", 4, {"all-linear"}, 1, 0.4);
  {
    AdapterSet set(*model);
    CHECK_THROWS_WITH_AS(Adapter(*model, tiny_lora()), doctest::Contains("already"), UsageError);
    CHECK_THROWS_WITH_AS((AdapterSet{*model}), doctest::Contains("already"), UsageError);
    // Without room for all of the tables the set stays as it was.
    const std::int64_t live = backend->ledger().total().live_bytes;
    backend->set_memory_limit(live + 6000);
    CHECK_THROWS_AS(set.add("a", open_adapter(folder)), OutOfMemoryError);
    backend->set_memory_limit(0);
    CHECK(set.adapters().empty());
    CHECK(backend->ledger().total().live_bytes == live);
    CHECK(set.add("a", open_adapter(folder)) == 0);
    GenerationRequest r{{1}, {}, 1};
    CHECK_THROWS_WITH_AS(Generator(*model, nullptr).run(std::span(&r, 1)),
                         doctest::Contains("variant 1"), UsageError);
  }
  const Adapter adapter(*model, tiny_lora());
  CHECK(adapter.layers().size() == 14);
}

TEST_CASE("a model with adapters may take the place of another one") {
  const std::string golden = std::string(LK_TEST_DATA) + "/golden/peft/";
  InferenceSettings named{.model = golden + "tiny", .device = "cpu"}, one = named;
  named.named_adapters = {"a=" + golden + "all_linear.after"};
  one.adapter = golden + "all_linear.after";
  InferenceModel m = open_inference(named);
  m = open_inference(one);
  m = open_inference(named);
  InferenceModel& same = m;
  m = std::move(same);
  CHECK(m.adapters->find("a") == 0);
  CHECK(m.tokenizer->encode("a").size() > 0);
}

TEST_CASE("cuda: recorded steps with several adapters give the tokens of steps that are not") {
  LK_NEEDS_GPU();
  Folder f;
  const std::vector<Spec> adapters = specs("llama");
  const std::vector<std::string> folders = write_adapters(f, adapters, tiny_config());
  auto backend = open_device("auto");
  for (const DType dtype : {DType::F32, DType::BF16}) {
    auto model = tiny_transformer(*backend, dtype);
    AdapterSet set(*model);
    for (std::size_t i = 0; i < folders.size(); ++i)
      set.add(adapters[i].name, open_adapter(folders[i]));
    std::vector<GenerationRequest> requests;
    for (const Row& row : random_rows({9, 3, 14, 1, 6, 2}, 3))
      for (const std::int32_t variant : {2, -1, 0, 1}) {
        GenerationRequest r{row.ids, {}, -1};
        r.variant = variant;
        r.sampling.max_tokens = 4 + static_cast<std::int64_t>(requests.size() * 7 % 20);
        requests.push_back(std::move(r));
      }
    for (const std::int64_t batch : {1, 5, 24}) {
      CAPTURE(batch);
      const auto run = [&](bool record) {
        std::vector<std::vector<std::int32_t>> ids;
        for (const Generation& g :
             Generator(*model, nullptr, {.max_batch = batch, .record = record}).run(requests))
          ids.push_back(g.ids);
        return ids;
      };
      const auto recorded = run(true);
      CHECK(recorded == run(false));
      std::size_t others = 0;  // sequences that begin otherwise than the base's
      for (std::size_t i = 0; i < recorded.size(); ++i)
        others += !std::equal(recorded[i].begin(), recorded[i].begin() + 4,
                              recorded[i / 4 * 4 + 1].begin());
      CHECK(others > 3);
    }
  }
}

TEST_CASE(
    "100 adapters over SmolLM2 in one batch, and switching takes under a millisecond of the "
    "processor") {
  const std::string path = smollm2_path();
  if (path.empty()) LK_SKIP("no SmolLM2 (set LORIKEET_SMOLLM2)");
  Folder f;
  InferenceSettings settings;
  settings.model = path;
  settings.device = "cpu";
  settings.weights = "auto";  // quantised where there are kernels: a token has the same bits alone
  settings.max_positions = 64;
  InferenceModel m = open_inference(settings);
  // Numbers by seed, ranks 1 to 12.
  AdapterSet set(*m.model);
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 100; ++i) {
    const std::string folder = (f.path / concat("s", i)).string();
    stdfs::create_directories(folder);
    {
      const std::int64_t rank = 1 + i % 12;
      std::vector<SafetensorsEntry> tensors;
      for (int layer : {0, 15, 29})
        for (auto [module, N] : {std::pair<const char*, std::int64_t>{"q_proj", 576},
                                 std::pair<const char*, std::int64_t>{"v_proj", 192}}) {
          const std::string key =
              concat("base_model.model.model.layers.", layer, ".self_attn.", module);
          auto numbers = [&](std::int64_t n, unsigned seed, double scale) {
            const std::vector<double> v = random_values(n, seed, scale);
            return std::vector<float>(v.begin(), v.end());
          };
          const unsigned seed = static_cast<unsigned>(1000 * i + 2 * layer + (N == 192));
          tensors.push_back({key + ".lora_A.weight", {rank, 576}, numbers(rank * 576, seed, 0.1)});
          tensors.push_back(
              {key + ".lora_B.weight", {N, rank}, numbers(N * rank, seed + 500, 0.4)});
        }
      write_safetensors(folder + "/adapter_model.safetensors", tensors, {{"format", "pt"}});
      write_file_durably(folder + "/adapter_config.json",
                         concat(R"({"peft_type":"LORA","r":)", rank, R"(,"lora_alpha":)", rank,
                                R"(,"target_modules":["q_proj","v_proj"]})"));
    }
    GenerationRequest r{m.tokenizer->encode("The capital of France is"), {}, -1};
    r.variant = set.add(concat("s", i), open_adapter(folder));
    r.sampling.max_tokens = 4;
    requests.push_back(r);
  }
  const auto weights = m.backend->ledger()[Tag::Weights], params = m.backend->ledger()[Tag::Params];
  const auto together = Generator(*m.model, m.tokenizer.get(), {.max_batch = 100}).run(requests);
  for (std::size_t i = 0; i < 100; i += 7)
    CHECK(Generator(*m.model, m.tokenizer.get()).run(std::span(&requests[i], 1))[0].ids ==
          together[i].ids);
  std::size_t different = 0;
  for (const Generation& g : together) different += g.ids != together[0].ids;
  CHECK(different > 10);

  // The whole of a switch: what a step of decoding uploads when each sequence has another adapter.
  KvCache cache(*m.backend, m.model->config(), m.model->compute_dtype(), 4, 100);
  std::vector<SequencePart> parts;
  for (std::int32_t i = 0; i < 100; ++i) parts.push_back({i, {5}, i});
  CachedBatch batch = make_cached_batch(cache, parts);
  const std::vector<double> before = to_host_f64(m.model->next_logits(batch, cache));
  for (std::int32_t i = 0; i < 100; ++i) parts[static_cast<std::size_t>(i)].variant = 99 - i;
  constexpr int kSwitches = 20;
  const CpuClock clock;
  for (int i = 0; i < kSwitches; ++i) refill_cached_batch(batch, cache, parts);
  m.backend->synchronize();
  const double seconds = clock.seconds() / kSwitches;
  CHECK(clock.within(kSwitches * 1e-3));
  const std::vector<double> after = to_host_f64(m.model->next_logits(batch, cache));
  const auto V = static_cast<std::ptrdiff_t>(m.model->config().vocab_size);
  for (std::ptrdiff_t i = 0; i < 100; ++i)  // all have the same token: row i is now row 99 - i
    CHECK(std::equal(after.begin() + i * V, after.begin() + (i + 1) * V,
                     before.begin() + (99 - i) * V));
  CHECK(before != after);
  MESSAGE("switching 100 adapters: " << 1e3 * seconds << " ms, " << batch.storage.bytes()
                                     << " bytes; one of rank 8: " << set.adapters()[7].bytes
                                     << " bytes");
  CHECK(batch.storage.bytes() < 10000);
  // Nothing of the base, and no factor, was allocated again.
  CHECK(m.backend->ledger()[Tag::Weights].total_count == weights.total_count);
  CHECK(m.backend->ledger()[Tag::Params].total_count == params.total_count);
}
