// The numbers of Hugging Face PEFT on tiny models: losses of a training run, the adapter that it
// ends with, and logits. golden/make_peft_golden.py made them and describes how;
// golden/check_peft.py checks the opposite direction. test_peft_real.cpp has the real model.
#include <fstream>
#include <functional>

#include "cuda/open_device.h"
#include "harness.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "modelfile/family_files.h"
#include "modelfile/load.h"
#include "nn/evaluation.h"
#include "peft_golden.h"
#include "tensor_file.h"
#include "text/dataset.h"
#include "text/tokenizer.h"

using namespace lk;
using namespace lk::test;

namespace {

// Runs `body` on the CPU and, if there is one, on the GPU.
void on_every_device(const std::function<void(Backend&)>& body) {
  body(*open_device("cpu"));
  if (n_gpus() > 0) body(*open_device("cuda:0"));
}

struct TinyRun {
  ModelFile file;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Adapter> adapter;
  TinyRun(Backend& backend, const std::string& adapter_folder)
      : file(kGolden + "tiny"), tokenizer(file.read_tokenizer()) {
    LoadedModel loaded = load_weights(backend, file, DType::F32);
    model = std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights),
                                          DType::F32, 256);
    AdapterFile file = open_adapter(kGolden + adapter_folder);
    adapter = attach_adapter(*model, file, file.config, true);
  }
  Dataset rows() const {
    DatasetOptions options;
    options.seq_len = 256;
    return load_dataset(kGolden + "rows.jsonl", *tokenizer, std::nullopt, options);
  }
};

// How far apart two adapters are, in units of the learning rate: Adam moves an element by about
// that much a step whatever its gradient, so an element whose gradient is all rounding may differ
// by a few of them.
void check_adapters(const Adapter& got, const Adapter& want, double lr) {
  double worst = 0, sum = 0;
  std::int64_t n = 0;
  std::string at;
  std::vector<Parameter*> a = got.parameters(), b = want.parameters();
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::vector<float> x = values(*a[i]), y = values(*b[i]);
    REQUIRE(x.size() == y.size());
    for (std::size_t j = 0; j < x.size(); ++j, ++n) {
      const double d = std::abs(static_cast<double>(x[j]) - y[j]) / lr;
      sum += d;
      if (d > worst) worst = d, at = concat(a[i]->name(), "[", j, "]");
    }
  }
  CHECK_MESSAGE(worst < 0.05, "worst at ", at, ": ", worst, " learning rates");
  CHECK_MESSAGE(sum / static_cast<double>(n) < 1e-4, "mean ", sum / static_cast<double>(n));
}

// A model of golden/models/ with the adapter that PEFT had there, and the rows of both.
struct FamilyRun {
  std::vector<Row> rows;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Adapter> adapter;
  std::unique_ptr<Trainer> trainer;

  FamilyRun(Backend& backend, const Json& golden, const std::string& name, DType dtype) {
    for (const Json& r : golden["rows"]) {
      Row row;
      row.ids = r[0].get<std::vector<std::int32_t>>();
      for (std::size_t i = 0; i < row.ids.size(); ++i)
        row.supervised.push_back(i >= r[1].get<std::size_t>());
      rows.push_back(std::move(row));
    }
    LoadedModel loaded = load_weights(
        backend, ModelFile(std::string(LK_TEST_DATA) + "/golden/models/" + name), dtype);
    model =
        std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights), dtype, 80);
    LoraConfig lora;
    lora.shape = {golden["rank"].get<std::int64_t>(), golden["alpha"].get<double>(), 0};
    lora.targets = {"all-linear"};
    adapter = std::make_unique<Adapter>(*model, lora);
    fill_by_formula(*adapter, golden["b_bound"].get<double>());
    TrainerConfig config;
    config.adamw.weight_decay = golden["weight_decay"].get<float>();
    config.schedule = {ScheduleKind::Constant, golden["lr"].get<double>(), 0, 10};
    config.clip = 0;
    adapter->lay_out_for_training();
    trainer = std::make_unique<Trainer>(*model, *adapter, config);
  }
  double step(std::size_t k) {
    std::vector<std::vector<const Row*>> micro(1);
    for (std::size_t i = 0; i < 3; ++i) micro[0].push_back(&rows[(3 * k + i) % rows.size()]);
    return trainer->step(micro).loss;
  }
};

}  // namespace

TEST_CASE("PEFT's initial adapters are what the formula says, bit for bit") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : {"all_linear", "subset"}) {
    Golden golden(name);
    TinyRun from_file(*backend, std::string(name) + ".initial");
    TinyRun by_formula(*backend, std::string(name) + ".initial");
    fill_by_formula(*by_formula.adapter, golden.get<double>("b_bound"));
    std::vector<Parameter*> a = from_file.adapter->parameters(),
                            b = by_formula.adapter->parameters();
    for (std::size_t i = 0; i < a.size(); ++i)
      CHECK_MESSAGE(values(*a[i]) == values(*b[i]), a[i]->name());
  }
}

TEST_CASE("twenty steps as PEFT trains them: losses, gradient norms, the adapter, evaluation") {
  on_every_device([](Backend& backend) {
    for (const std::string name : {"all_linear", "subset"}) {
      CAPTURE(name);
      Golden golden(name);
      TinyRun run(backend, name + ".initial"), peft(backend, name + ".after");
      Dataset data = run.rows();
      std::vector<Row> eval_rows = last_rows(data, golden);
      run.adapter->lay_out_for_training();
      Trainer trainer(*run.model, *run.adapter, training(golden));
      CHECK(evaluate(*run.model, eval_rows, 256).loss ==
            doctest::Approx(golden.get<double>("eval_before")).epsilon(2e-6));
      std::vector<double> losses = golden.numbers("losses_f64"),
                          norms = golden.numbers("grad_norms"), tokens = golden.numbers("tokens");
      for (std::size_t k = 0; k < losses.size(); ++k) {
        CAPTURE(k);
        StepReport r = train_step(trainer, golden, data, static_cast<std::int64_t>(k));
        CHECK(static_cast<double>(r.supervised_tokens) == tokens[k]);
        CHECK(r.loss == doctest::Approx(losses[k]).epsilon(2e-6));
        CHECK(r.grad_norm == doctest::Approx(norms[k]).epsilon(2e-5));
        if (r.step == golden.get<std::int64_t>("after_step"))
          check_adapters(*run.adapter, *peft.adapter, golden.get<double>("lr"));
      }
      CHECK(evaluate(*run.model, eval_rows, 256).loss ==
            doctest::Approx(golden.get<double>("eval_after")).epsilon(2e-6));
    }
  });
}

TEST_CASE("ten steps with smoothed labels as PEFT and torch train them; evaluation stays plain") {
  on_every_device([](Backend& backend) {
    Golden golden("smoothed");
    TinyRun run(backend, "subset.initial");
    Dataset data = run.rows();
    std::vector<Row> eval_rows = last_rows(data, golden);
    run.adapter->lay_out_for_training();
    TrainerConfig config = training(golden);
    config.label_smoothing = golden.get<double>("label_smoothing");
    Trainer trainer(*run.model, *run.adapter, config);
    std::vector<double> losses = golden.numbers("losses_f64"), norms = golden.numbers("grad_norms");
    REQUIRE(losses.size() == 10);
    for (std::size_t k = 0; k < losses.size(); ++k) {
      CAPTURE(k);
      StepReport r = train_step(trainer, golden, data, static_cast<std::int64_t>(k));
      CHECK(r.loss == doctest::Approx(losses[k]).epsilon(2e-6));
      CHECK(r.grad_norm == doctest::Approx(norms[k]).epsilon(2e-5));
    }
    CHECK(evaluate(*run.model, eval_rows, 256).loss ==
          doctest::Approx(golden.get<double>("eval_after")).epsilon(2e-6));
  });
}

TEST_CASE("ten steps on a base of bitsandbytes as PEFT trains them on its dequantised values") {
  const std::string folder = std::string(LK_TEST_DATA) + "/golden/quantised/bnb";
  Golden golden(Json::parse(std::ifstream(folder + ".json")));
  for (BasePrecision precision : {BasePrecision::Stored, BasePrecision::Dense})
    on_every_device([&](Backend& backend) {
      const ModelFile file(folder);
      LoadedModel loaded = load_weights(backend, file, DType::F32, {.storage = {precision}});
      Transformer model(backend, loaded.config, std::move(loaded.weights), DType::F32, 256);
      LoraConfig lora;
      lora.shape = {golden.get<std::int64_t>("rank"), golden.get<double>("alpha"), 0};
      lora.targets = {"all-linear"};
      Adapter adapter(model, lora);
      fill_by_formula(adapter, golden.get<double>("b_bound"));
      adapter.lay_out_for_training();
      Trainer trainer(model, adapter, training(golden));
      DatasetOptions options;
      options.seq_len = 256;
      const Dataset data =
          load_dataset(kGolden + "rows.jsonl", *ModelFile(kGolden + "tiny").read_tokenizer(),
                       std::nullopt, options);
      const std::vector<double> losses = golden.numbers("losses"),
                                norms = golden.numbers("grad_norms");
      REQUIRE(losses.size() == 10);
      for (std::size_t k = 0; k < losses.size(); ++k) {
        CAPTURE(k);
        StepReport r = train_step(trainer, golden, data, static_cast<std::int64_t>(k));
        CHECK(r.loss == doctest::Approx(losses[k]).epsilon(4e-6));
        CHECK(r.grad_norm == doctest::Approx(norms[k]).epsilon(2e-5));
      }
      CHECK(evaluate(model, last_rows(data, golden), 256).loss ==
            doctest::Approx(golden.get<double>("eval_after")).epsilon(4e-6));
    });
}

TEST_CASE("logits with an adapter that PEFT trained and wrote") {
  on_every_device([](Backend& backend) {
    for (const std::string name : {"all_linear", "subset"}) {
      CAPTURE(name);
      TinyRun run(backend, name + ".after");
      SafetensorsFile file(kGolden + name + ".logits.safetensors");
      std::vector<float> ids_f32 = read_all(file, "ids"), want_f32 = read_all(file, "logits");
      std::vector<std::int32_t> ids(ids_f32.begin(), ids_f32.end());
      std::vector<double> got = to_host_f64(run.model->logits(make_prompt(backend, ids, 0)));
      REQUIRE(got.size() == want_f32.size());
      double worst = 0;
      for (std::size_t i = 0; i < got.size(); ++i)
        worst = std::max(worst, std::abs(got[i] - static_cast<double>(want_f32[i])));
      CHECK(worst < 2e-5);  // logits reach about 5; float32 keeps 6e-7 of that
    }
  });
}

// Runs on the models of golden/models/, with every projection adapted. PEFT's float32 losses lie
// within 5e-6 of its float64 ones here (1.2e-7 except for gemma3), so ours must lie within 1e-5 of
// both.
TEST_CASE("ten steps of every family as PEFT trains them, and its names and shapes of tensors") {
  const Json golden = Json::parse(std::ifstream(kGolden + "families.json"));
  on_every_device([&](Backend& backend) {
    for (const auto& [name, want] : golden["models"].items()) {
      CAPTURE(name);
      FamilyRun run(backend, golden, name, DType::F32);
      const Adapter& adapter = *run.adapter;
      CHECK(Json(adapter.target_modules()) == want["target_modules"]);
      CHECK(files_of(run.model->config()).conv1d == want["fan_in_fan_out"].get<bool>());
      CHECK(adapter.parameters().size() == want["tensors"].size());
      for (const Parameter* p : adapter.parameters()) {
        const std::string key = "base_model.model." + p->name();
        REQUIRE_MESSAGE(want["tensors"].contains(key), key);
        CHECK(Json({p->shape()[0], p->shape()[1]}) == want["tensors"][key]);
      }
      double worst = 0, worst_f64 = 0;
      for (std::size_t k = 0; k < 10; ++k) {
        const double loss = run.step(k);
        worst = std::max(worst, std::abs(loss / want["losses"][k].get<double>() - 1));
        worst_f64 = std::max(worst_f64, std::abs(loss / want["losses_f64"][k].get<double>() - 1));
      }
      MESSAGE(name << " on " << backend.name() << ": losses differ from PEFT's by " << worst
                   << ", from its float64 ones by " << worst_f64);
      CHECK(worst <= 1e-5);
      CHECK(worst_f64 <= 1e-5);
    }
  });
}

// The losses in BF16, where activations and their gradients are rounded but A and B are not,
// compared with PEFT's in float32. A logit is off by 2^-8 sqrt(roundings) of the usual logit, which
// is about 1 here (a normed row times an embedding of unit length; 18 roundings per layer as in
// test_transformer); a token's loss is off by at most twice that, and what training changed it by,
// by the same share.
TEST_CASE("ten steps of every family in BF16 stay near PEFT's in float32") {
  const Json golden = Json::parse(std::ifstream(kGolden + "families.json"));
  on_every_device([&](Backend& backend) {
    for (const auto& [name, want] : golden["models"].items()) {
      FamilyRun run(backend, golden, name, DType::BF16);
      const double layers = static_cast<double>(run.model->config().n_layers),
                   rounding = 0x1p-8 * std::sqrt(18 * layers + 2),
                   first = want["losses"][0].get<double>(), last = want["losses"][9].get<double>();
      double worst = 0, relative = 0;
      for (std::size_t k = 0; k < 10; ++k) {
        const double expected = want["losses"][k].get<double>(),
                     error = std::abs(run.step(k) - expected);
        relative = std::max(relative, error / expected);
        worst = std::max(worst, error / (rounding * (2 + std::abs(first - expected))));
      }
      MESSAGE(name << " on " << backend.name() << ": BF16 losses, " << first << " to " << last
                   << ", differ by " << relative << ", " << worst << " of the bound");
      CHECK(worst <= 1);
    }
  });
}
