// LoRA's variants: rank-stabilised scales, patterns, layers, ways to initialise, LoRA+ and DoRA,
// compared with Hugging Face PEFT on the tiny model (golden/make_peft_golden.py, "variants").
#include <fstream>

#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "harness.h"
#include "io/json.h"
#include "lora/adapter_io.h"
#include "lora/rank_patterns.h"
#include "lora/svd.h"
#include "lora/trainer.h"
#include "modelfile/load.h"
#include "nn/evaluation.h"
#include "peft_golden.h"
#include "scratch_folder.h"
#include "text/dataset.h"
#include "text/tokenizer.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

const Json& variants() {
  static const Json all = Json::parse(std::ifstream(kGolden + "variants.json"));
  return all;
}

std::unique_ptr<Transformer> tiny(Backend& backend) {
  LoadedModel loaded = load_weights(backend, ModelFile(kGolden + "tiny"), DType::F32);
  return std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights),
                                       DType::F32, 256);
}

Dataset golden_rows() {
  DatasetOptions options;
  options.seq_len = 256;
  return load_dataset(kGolden + "rows.jsonl", *ModelFile(kGolden + "tiny").read_tokenizer(),
                      std::nullopt, options);
}

LoraConfig lora_of(const Json& golden, const ModelConfig& model) {
  const Json& own = golden["lora"];
  LoraConfig lora;
  lora.shape = {golden["rank"].get<std::int64_t>(), golden["alpha"].get<double>(), 0};
  lora.shape.rslora = own.value("use_rslora", false);
  lora.shape.dora = own.value("use_dora", false);
  lora.targets = golden["targets"].get<std::vector<std::string>>();
  if (own.contains("layers_to_transform"))
    lora.layers = own["layers_to_transform"].get<std::vector<std::int64_t>>();
  if (own.contains("init_lora_weights"))
    lora.init = parse_lora_init(own["init_lora_weights"].get<std::string>());
  // The order of the file's keys: layers\.0\..* before down_proj.
  ByPattern<std::int64_t> ranks;
  if (own.contains("rank_pattern")) ranks = {{R"(layers\.0\..*)", 2}, {"down_proj", 6}};
  ByPattern<double> alphas;
  if (own.contains("alpha_pattern")) alphas = {{"v_proj", 3}};
  apply_patterns(lora, model, ranks, alphas);
  return lora;
}

// The product B A of a module as a file has it, in double.
std::vector<double> product(const AdapterFile& file, const std::string& module, std::int64_t out,
                            std::int64_t in) {
  const HostFactors f = read_factors(file, module, out, in);
  std::vector<double> p(static_cast<std::size_t>(out * in));
  for (std::int64_t n = 0; n < out; ++n)
    for (std::int64_t r = 0; r < f.rank; ++r)
      for (std::int64_t k = 0; k < in; ++k)
        p[static_cast<std::size_t>(n * in + k)] +=
            static_cast<double>(f.b[static_cast<std::size_t>(n * f.rank + r)]) *
            static_cast<double>(f.a[static_cast<std::size_t>(r * in + k)]);
  return p;
}

}  // namespace

// PEFT's float32 losses lie within 2e-6 of its float64 ones.
TEST_CASE("ten steps of every variant as PEFT trains them, and the adapter that is left") {
  const Dataset data = golden_rows();
  std::vector<std::unique_ptr<Backend>> devices;
  devices.push_back(open_device("cpu"));
  if (n_gpus() > 0) devices.push_back(open_device("cuda:0"));
  for (const auto& backend : devices)
    for (const auto& [name, json] : variants().items()) {
      CAPTURE(name);
      Golden golden(json);
      auto model = tiny(*backend);
      Adapter adapter(*model, lora_of(json, model->config()));
      const bool changed = changes_base(adapter.config().init);
      if (!changed) fill_by_formula(adapter, golden.get<double>("b_bound"));
      TrainerConfig config = training(golden);
      config.loraplus_ratio = json.value("loraplus_ratio", 0.0);
      adapter.lay_out_for_training();
      Trainer trainer(*model, adapter, config);
      const std::vector<double> losses = golden.numbers("losses_f64"),
                                norms = golden.numbers("grad_norms");
      const auto want = losses.size();
      double worst = 0;
      for (std::size_t k = 0; k < want; ++k) {
        const StepReport r = train_step(trainer, golden, data, static_cast<std::int64_t>(k));
        worst = std::max(worst, std::abs(r.loss / losses[k] - 1));
        CHECK(r.grad_norm == doctest::Approx(norms[k]).epsilon(2e-4));
      }
      MESSAGE(name << " on " << backend->name() << ": losses differ by " << worst);
      CHECK(worst <= 2e-5);
      const std::vector<Row> eval = last_rows(data, golden);
      const double after = evaluate(*model, eval, 256).loss;
      CHECK(after == doctest::Approx(golden.get<double>("eval_after")).epsilon(2e-5));

      // The files on the base as it was: the same function.
      ScratchFolder scratch;
      save_adapter(scratch.file("."), adapter, "base", "");
      const AdapterFile file = open_adapter(scratch.file("."));
      auto again = tiny(*backend);
      auto read = attach_adapter(*again, file, file.config, false);
      CHECK(evaluate(*again, eval, 256).loss == doctest::Approx(after).epsilon(5e-6));
      if (!changed) continue;
      CHECK(file.config.shape.rank == json["converted"]["r"].get<std::int64_t>());
      CHECK(file.config.shape.alpha ==
            doctest::Approx(json["converted"]["lora_alpha"].get<double>()));
      for (const auto& [module, products] : json["products"].items()) {
        const auto* layer =
            *std::find_if(adapter.layers().begin(), adapter.layers().end(),
                          [&](const LoraLinear* one) { return one->path() == module; });
        const std::vector<double> got =
            product(file, module, layer->out_features(), layer->in_features());
        const auto expected = products.get<std::vector<double>>();
        double largest = 0, difference = 0;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          largest = std::max(largest, std::abs(expected[i]));
          difference = std::max(difference, std::abs(got[97 * i] - expected[i]));
        }
        CHECK_MESSAGE(difference <= 1e-3 * largest, module, ": ", difference, " of ", largest);
      }
      // Disabled, what is left of the base and the start of A and B are the base again.
      adapter.set_enabled(false);
      CHECK(evaluate(*model, eval, 256).loss ==
            doctest::Approx(evaluate(*tiny(*backend), eval, 256).loss).epsilon(2e-6));
    }
}

TEST_CASE("logits with a DoRA adapter that PEFT trained and wrote") {
  const Json& golden = variants()["dora"];
  auto backend = open_device("cpu");
  auto model = tiny(*backend);
  const AdapterFile file = open_adapter(kGolden + "dora.after");
  auto adapter = attach_adapter(*model, file, file.config, false);
  const auto ids = golden["ids"].get<std::vector<std::int32_t>>();
  const std::vector<double> logits = to_host_f64(model->logits(make_prompt(*backend, ids, 0)));
  const auto want = golden["last_logits"].get<std::vector<double>>();
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    worst = std::max(worst, std::abs(logits[logits.size() - want.size() + i] - want[i]));
  CHECK(worst < 2e-5);
}

TEST_CASE("DoRA is m (W + s B A) / norm, its dropout is PEFT's, and its norms follow A and B") {
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64);
  LoraConfig config = tiny_lora({"mlp.down_proj"});
  config.shape.dora = true;
  config.shape.dropout = 0.5f;
  Tensor probe = random_tensor(*backend, DType::F64, {5, 40}, 2);
  Tape tape(*backend, Tape::Mode::NoGrad);
  auto first_site = [&](auto&& f) {
    model->visit_sites([&](const std::string& path, std::size_t, Site, auto& map) {
      if (path == "model.layers.0.mlp.down_proj") f(*map);
    });
  };
  std::vector<double> base;
  first_site([&](LinearMap& map) { base = to_host_f64(map.apply(tape, Var(probe), {}).value()); });
  Adapter adapter(*model, config);
  LoraLinear& layer = *adapter.layers()[0];
  check_close(to_host_f64(layer.apply(tape, Var(probe), {}).value()), base, 1e-12, {1e-12},
              "a fresh DoRA adapter is the base");

  const std::int64_t N = layer.out_features(), K = layer.in_features(), R = layer.shape().rank;
  const std::vector<double> w = to_host_f64(layer.base().weight().values());
  auto expected = [&](const std::vector<double>& x, const std::vector<double>& z) {
    const std::vector<double> a = to_host_f64(layer.a().value()),
                              b = to_host_f64(layer.b().value()),
                              m = to_host_f64(layer.magnitude()->value());
    std::vector<double> y;
    for (std::size_t t = 0; t < 5; ++t)
      for (std::int64_t n = 0; n < N; ++n) {
        double norm = 0, v = 0, rest = 0;
        for (std::int64_t k = 0; k < K; ++k) {
          double sum = w[static_cast<std::size_t>(n * K + k)];
          const std::size_t at = t * static_cast<std::size_t>(K) + static_cast<std::size_t>(k);
          rest += sum * (x[at] - z[at]);
          for (std::int64_t r = 0; r < R; ++r)
            sum += layer.shape().scale() * b[static_cast<std::size_t>(n * R + r)] *
                   a[static_cast<std::size_t>(r * K + k)];
          norm += sum * sum, v += sum * z[at];
        }
        y.push_back(rest + m[static_cast<std::size_t>(n)] * v / std::sqrt(norm));
      }
    return y;
  };
  const std::vector<double> x = to_host_f64(probe);
  for (unsigned seed : {1u, 2u}) {  // the norms are of the factors as they are now
    randomize_b(adapter, seed, 1.0);
    check_close(to_host_f64(layer.apply(tape, Var(probe), {}).value()), expected(x, x), 1e-12,
                {1e-12}, "DoRA");
    Tensor y = tensor_from(*backend, DType::F64, {5, N}, base);
    layer.adapt(tape, y, probe, {});
    check_close(to_host_f64(y), expected(x, x), 1e-12, {1e-12}, "adapt()");
  }
  const ForwardMode training{true, 3, 4};
  Tensor dropped = backend->empty(Tag::Workspace, DType::F64, probe.shape());
  backend->dropout(dropped, GradMode::Write, probe, 0.5f, dropout_key(training, layer.site()));
  check_close(to_host_f64(layer.apply(tape, Var(probe), training).value()),
              expected(x, to_host_f64(dropped)), 1e-12, {1e-12}, "with dropout");
}

TEST_CASE("the largest terms of a matrix whose decomposition is known") {
  struct Shape {
    std::int64_t rows, cols, rank;
  };
  for (const Shape& s : {Shape{1, 1, 1},
                         {5, 3, 2},
                         {3, 5, 3},
                         {40, 40, 7},
                         {120, 70, 16},
                         {70, 120, 16},
                         {90, 90, 90}}) {
    CAPTURE(s.rows);
    CAPTURE(s.cols);
    const std::int64_t n = std::min(s.rows, s.cols);
    auto basis = [&](std::int64_t rows, unsigned seed) {
      const std::vector<double> v = random_values(rows * n, seed);
      return leading_qr(std::vector<float>(v.begin(), v.end()), rows, n, n).left;
    };
    const std::vector<double> u = basis(s.rows, 1), v = basis(s.cols, 2);
    std::vector<double> w(static_cast<std::size_t>(s.rows * s.cols)), best(w.size());
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t i = 0; i < s.rows; ++i)
        for (std::int64_t j = 0; j < s.cols; ++j) {
          const double term = (1 + 0.1 * static_cast<double>(n - t)) *
                              u[static_cast<std::size_t>(i * n + t)] *
                              v[static_cast<std::size_t>(j * n + t)];
          w[static_cast<std::size_t>(i * s.cols + j)] += term;
          if (t < s.rank) best[static_cast<std::size_t>(i * s.cols + j)] += term;
        }
    const ThinProduct got =
        largest_terms(std::vector<float>(w.begin(), w.end()), s.rows, s.cols, s.rank);
    double worst = 0;
    for (std::int64_t i = 0; i < s.rows; ++i)
      for (std::int64_t j = 0; j < s.cols; ++j) {
        double sum = 0;
        for (std::int64_t t = 0; t < s.rank; ++t)
          sum += got.left[static_cast<std::size_t>(i * s.rank + t)] *
                 got.right[static_cast<std::size_t>(t * s.cols + j)];
        worst = std::max(worst, std::abs(sum - best[static_cast<std::size_t>(i * s.cols + j)]));
      }
    // w was rounded to float, 2^-24 of values up to 10; singular vectors turn by that over their
    // gaps of 0.1.
    CHECK(worst < 1e-4);
  }
}

TEST_CASE("matrices with nothing to find: zero, of rank one, the identity") {
  std::vector<float> zero(6 * 4, 0.0f), one(6 * 4), identity(25, 0.0f);
  for (std::size_t i = 0; i < one.size(); ++i)
    one[i] = static_cast<float>((i / 4 + 1) * (i % 4 + 1));
  for (std::size_t i = 0; i < 5; ++i) identity[6 * i] = 1;
  auto is_finite = [](const ThinProduct& p) {
    for (double x : p.left)
      if (!std::isfinite(x)) return false;
    for (double x : p.right)
      if (!std::isfinite(x)) return false;
    return true;
  };
  for (std::int64_t rank : {1, 2, 4})
    for (const std::vector<float>& w : {zero, one}) {
      CHECK(is_finite(largest_terms(w, 6, 4, rank)));
      CHECK(is_finite(leading_qr(w, 6, 4, rank)));
    }
  const ThinProduct p = largest_terms(one, 6, 4, 3);
  for (std::size_t i = 0; i < one.size(); ++i) {
    double sum = 0;
    for (std::size_t t = 0; t < 3; ++t) sum += p.left[i / 4 * 3 + t] * p.right[t * 4 + i % 4];
    CHECK(sum == doctest::Approx(static_cast<double>(one[i])).epsilon(1e-9));
  }
  const ThinProduct all = largest_terms(identity, 5, 5, 5);
  for (std::size_t i = 0; i < 5; ++i) {
    double sum = 0;
    for (std::size_t t = 0; t < 5; ++t) sum += all.left[i * 5 + t] * all.right[t * 5 + i];
    CHECK(sum == doctest::Approx(1).epsilon(1e-9));
  }
}

TEST_CASE("gaussian: A is normal with deviation 1 / rank, B zero, by seed and module") {
  auto backend = make_cpu_backend();
  auto values_of = [&](std::uint64_t seed) {
    auto model = tiny_transformer(*backend, DType::F32);
    LoraConfig config = tiny_lora();
    config.init = LoraInit::Gaussian;
    config.seed = seed;
    Adapter adapter(*model, config);
    std::vector<float> a;
    for (LoraLinear* layer : adapter.layers()) {
      for (float x : values(layer->a())) a.push_back(x);
      for (float x : values(layer->b())) CHECK(x == 0);
    }
    return std::pair(a, static_cast<double>(config.shape.rank));
  };
  const auto [a, rank] = values_of(1);
  CHECK(a == values_of(1).first);
  CHECK(a != values_of(2).first);
  double sum = 0, squares = 0, fourth = 0;
  for (float x : a) {
    const double z = static_cast<double>(x) * rank;
    sum += z, squares += z * z, fourth += z * z * z * z;
  }
  const double n = static_cast<double>(a.size());  // five deviations of each mean
  CHECK(std::abs(sum / n) < 5 / std::sqrt(n));
  CHECK(std::abs(squares / n - 1) < 5 * std::sqrt(2 / n));
  CHECK(std::abs(fourth / n - 3) < 5 * std::sqrt(96 / n));
}

TEST_CASE("targets that are all modules of a name become that name, others stay paths") {
  const ModelConfig model = tiny_config();
  LoraConfig config;
  for (std::int64_t layer = 0; layer < model.n_layers; ++layer)
    config.targets.push_back(concat("model.layers.", layer, ".self_attn.q_proj"));
  config.targets.push_back("model.layers.0.mlp.up_proj");
  shorten_targets(config, model);
  CHECK(config.targets == std::vector<std::string>{"model.layers.0.mlp.up_proj", "q_proj"});
  shorten_targets(config, model);
  CHECK(config.targets == std::vector<std::string>{"model.layers.0.mlp.up_proj", "q_proj"});

  // gpt2 has two kinds of c_proj.
  const ModelConfig gpt2 = as_family(tiny_config(), "gpt2");
  config.targets.clear();
  for (std::int64_t layer = 0; layer < gpt2.n_layers; ++layer)
    config.targets.push_back(concat("transformer.h.", layer, ".attn.c_proj"));
  const std::vector<std::string> attention = config.targets;
  shorten_targets(config, gpt2);
  CHECK(config.targets == attention);
}

TEST_CASE("a regular expression as targets names modules by their whole paths") {
  const ModelConfig model = tiny_config(), gpt2 = as_family(tiny_config(), "gpt2");
  using Names = std::vector<std::string>;
  CHECK(expand_targets({"q_proj", "all-linear"}, model) == Names{"q_proj", "all-linear"});
  CHECK(expand_targets({"regex:.*\\.(q|v)_proj"}, model) == Names{"q_proj", "v_proj"});
  CHECK(expand_targets({"regex:.*layers\\.1\\.mlp\\.(up|down)_proj"}, model) ==
        Names{"model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"});
  CHECK(expand_targets({"regex:.{1,40}0\\.attn\\.c_proj"}, gpt2) ==
        Names{"transformer.h.0.attn.c_proj"});
  const auto refused = [&](const Names& targets, const char* part) {
    CHECK_THROWS_WITH_AS(expand_targets(targets, model), doctest::Contains(part), UsageError);
  };
  refused({"regex:q_proj"}, "matches no module");  // it is not the whole path
  refused({"regex:"}, "matches no module");
  refused({"regex:.*"}, "vocabulary");
  refused({"regex:.*proj|lm_head"}, "vocabulary");
  refused({"regex:.*(q_proj"}, "`targets`");
  refused({"v_proj", "regex:.*q_proj"}, "stands alone");
}

TEST_CASE("patterns and layers: texts, what they choose, and what is refused by its flag") {
  CHECK(parse_rank_pattern("q_proj=4,layers\\.(0|1)\\..{2,3}_proj=8", "--rank-pattern") ==
        ByPattern<std::int64_t>{{"q_proj", 4}, {"layers\\.(0|1)\\..{2,3}_proj", 8}});
  CHECK(pattern_text(parse_alpha_pattern("a=0.5,b=16", "f")) == "a=0.5,b=16");
  CHECK(parse_layers("3,0-1,7-7", "--layers") == std::vector<std::int64_t>{0, 1, 3, 7});
  CHECK(layers_text({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8");
  for (const char* bad : {"", "q_proj", "q_proj=", "=3", "q=1.5", "q=4x", "q=1,,k=2"})
    CHECK_THROWS_AS(parse_rank_pattern(bad, "--rank-pattern"), UsageError);
  for (const char* bad : {"", "a", "1-", "-1", "3-1", "1,,2", "1.5", "99999999999999999999"})
    CHECK_THROWS_AS(parse_layers(bad, "--layers"), UsageError);

  LoraConfig config = tiny_lora();
  config.layers = {1};
  apply_patterns(config, tiny_config(), {{"q_proj", 1}, {".*proj", 2}}, {{"v_proj", 9}});
  CHECK(config.shape_of("model.layers.1.self_attn.q_proj").rank == 1);
  CHECK(config.shape_of("model.layers.1.self_attn.v_proj").rank == 2);
  CHECK(config.shape_of("model.layers.1.self_attn.v_proj").alpha == 9);
  auto refused = [&](const ByPattern<std::int64_t>& ranks, const ByPattern<double>& alphas,
                     const char* part) {
    LoraConfig fresh = tiny_lora();
    fresh.layers = {1};
    CHECK_THROWS_WITH_AS(apply_patterns(fresh, tiny_config(), ranks, alphas),
                         doctest::Contains(part), UsageError);
  };
  refused({{"layers.0.self_attn.q_proj", 1}}, {}, "`rank_pattern`: \"layers.0");
  refused({{"bananas", 1}}, {}, "bananas");
  refused({{"q_proj", 0}}, {}, "`rank_pattern`");
  refused({{"q_proj", 1}, {"q_proj", 2}}, {}, "twice");
  refused({{"(q_proj", 1}}, {}, "`rank_pattern`");
  refused({}, {{"q_proj", -1}}, "`alpha_pattern`");

  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  LoraConfig none = tiny_lora();
  none.layers = {2};
  CHECK_THROWS_WITH_AS(Adapter(*model, none), doctest::Contains("`layers` 2"), UsageError);
  none.layers = {0};
  none.exceptions["model.layers.0.self_attn.q_proj"] = {1000, 1};
  CHECK_THROWS_WITH_AS(Adapter(*model, none), doctest::Contains("`rank_pattern` 1000"), UsageError);
}

TEST_CASE("one rank is for matrices of many widths, unless it is taken out of them") {
  const ModelConfig tiny = tiny_config();
  const std::int64_t kv = tiny.n_kv_heads * tiny.head_dim, rank = kv + 1;
  REQUIRE(rank <= tiny.hidden_size);
  for (LoraInit init : {LoraInit::Kaiming, LoraInit::Gaussian, LoraInit::Pissa, LoraInit::Olora}) {
    auto backend = make_cpu_backend();
    auto model = tiny_transformer(*backend, DType::F32);
    LoraConfig config = tiny_lora();
    config.targets = {"k_proj"}, config.shape.rank = rank, config.init = init;
    if (changes_base(init)) {
      CHECK_THROWS_WITH_AS(Adapter(*model, config),
                           doctest::Contains(concat("allows 1 to ", kv).c_str()), UsageError);
      continue;
    }
    Adapter adapter(*model, config);
    adapter.lay_out_for_training();
    Trainer trainer(*model, adapter, {});
    const std::vector<Row> rows = random_rows({9, 5}, 3);
    const std::vector<std::vector<const Row*>> micro = {pointers(rows)};
    const double first = trainer.step(micro).loss;
    CHECK(trainer.step(micro).loss < first);
  }
}
