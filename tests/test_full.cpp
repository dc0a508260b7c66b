// Full fine-tuning: ten steps as plain PyTorch makes them on models of transformers
// (golden/make_full_golden.py), every gradient against finite differences, the model that is saved,
// and runs. golden/check_full.py opens what a run saves with transformers.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>

#include "cuda/open_device.h"
#include "family_models.h"
#include "heard_run.h"
#include "lora/proof.h"
#include "lora/trainer.h"
#include "methods/full.h"
#include "nn/generate.h"
#include "run/checkpoint.h"
#include "run/methods.h"
#include "run/plan.h"
#include "run/sweep.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kFolder = std::string(LK_TEST_DATA) + "/golden/";
const char* const kCases[] = {"full_llama", "full_biases", "full_qwen3", "full_gemma3",
                              "full_gpt2"};

struct Trained {
  Json json;
  std::shared_ptr<ModelFile> file;
  std::unique_ptr<Transformer> model;
  std::unique_ptr<Full> full;
  std::vector<Row> rows;

  Trained(Backend& backend, const std::string& name, DType dtype = DType::F32)
      : json(Json::parse(std::ifstream(kFolder + "methods/" + name + ".json"))) {
    file = std::make_shared<ModelFile>(kFolder + "models/" + json["model"].get<std::string>());
    LoadedModel loaded = load_weights(backend, *file, dtype);
    model =
        std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights), dtype, 80);
    full = std::make_unique<Full>(*model, file);
    for (const Json& r : json["rows"]) {
      Row& row = rows.emplace_back();
      row.ids = r[0].get<std::vector<std::int32_t>>();
      for (std::size_t i = 0; i < row.ids.size(); ++i)
        row.supervised.push_back(i >= r[1].get<std::size_t>());
    }
  }
  TrainerConfig training() const {
    TrainerConfig config;
    config.adamw.weight_decay = json["weight_decay"].get<float>();
    config.schedule = {ScheduleKind::Constant, json["lr"].get<double>(), 0, 10};
    config.clip = 0;
    return config;
  }
  std::vector<std::vector<const Row*>> batch(std::size_t k) const {
    std::vector<std::vector<const Row*>> some(1);
    for (std::size_t i = 0; i < 3; ++i) some[0].push_back(&rows[(3 * k + i) % rows.size()]);
    return some;
  }
};

std::vector<double> last_logits(Transformer& model, const std::vector<std::int32_t>& ids) {
  const std::vector<double> all = to_host_f64(model.logits(make_prompt(model.backend(), ids, 0)));
  return {all.end() - static_cast<std::ptrdiff_t>(model.config().vocab_size), all.end()};
}

// A parameter's values in the order of the model's file, gains as they are there.
std::vector<double> in_file_order(const ModelFile& file, const Parameter& p) {
  for (const WeightSlot& slot : file.slots()) {
    if (slot.name != p.name()) continue;
    const StoredTensor stored = file.stored(slot);
    std::vector<float> values = to_host<float>(p.value());
    stored.to_stored(values, slot.shape.rank() == 1 ? 1 : slot.shape.cols());
    std::vector<double> all(values.begin(), values.end());
    if (stored.minus_one)
      for (double& v : all) v -= 1;
    return all;
  }
  return {};
}

void check_ten_steps(Backend& backend, const std::string& name) {
  CAPTURE(name);
  Trained t(backend, name);
  const std::int64_t before = backend.weight_gradient_matmuls();
  Trainer trainer(*t.model, *t.full, t.training());
  const auto want = t.json["losses"].get<std::vector<double>>();
  for (std::size_t k = 0; k < 10; ++k) {
    const double loss = trainer.step(t.batch(k)).loss;
    CHECK_MESSAGE(std::abs(loss / want[k] - 1) < 2e-5, "step ", k, ": ", loss, ", expected ",
                  want[k]);
  }
  CHECK(trainer.unmoved().empty());
  CHECK(backend.weight_gradient_matmuls() - before ==
        10 * t.full->weight_gradients() + trainer.head_gradients());
  // Adam moves an element by about the rate a step whatever its gradient, so one whose gradient is
  // all rounding may differ by a part of it.
  const auto lr = t.json["lr"].get<double>();
  for (const auto& [parameter, values] : t.json["after"].items()) {
    const std::vector<double> got = in_file_order(*t.file, t.full->at(parameter));
    for (std::size_t i = 0; i < values.size(); ++i)
      CHECK_MESSAGE(std::abs(got[i] - values[i].get<double>()) < 0.05 * lr, parameter, " ", i, ": ",
                    got[i], ", expected ", values[i].get<double>());
  }
  CHECK(t.json["after"].size() == t.full->parameters().size());
  check_close(last_logits(*t.model, t.json["ids"].get<std::vector<std::int32_t>>()),
              t.json["logits"].get<std::vector<double>>(), 1e-4, {1e-3}, name + " logits");
}

}  // namespace

TEST_CASE("ten steps of all weights give the losses, weights and logits of plain PyTorch") {
  for (const char* name : kCases) check_ten_steps(*open_device("cpu"), name);
  if (n_gpus() > 0)
    for (const char* name : kCases) check_ten_steps(*open_device("cuda:0"), name);
}

TEST_CASE("the first gradient of every weight is PyTorch's") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : kCases) {
    CAPTURE(name);
    Trained t(*backend, name, DType::F64);
    TrainerConfig config = t.training();
    config.schedule.lr = 0;
    Trainer(*t.model, *t.full, config).step(t.batch(0));
    for (const Parameter* p : t.full->parameters()) {
      double sum = 0, squares = 0;
      for (double g : to_host_f64(p->grad())) sum += g, squares += g * g;
      const auto want = t.json["gradients"][p->name()].get<std::vector<double>>();
      // transformers computes norms and angles in F32 even here. The gradient of a key's bias is
      // nothing but rounding: softmax takes no notice of it.
      CHECK_MESSAGE(std::abs(std::sqrt(squares) - want[1]) < 1e-5 * want[1] + 1e-8, p->name());
      CHECK_MESSAGE(std::abs(sum - want[0]) <
                        1e-5 * want[1] * std::sqrt(static_cast<double>(p->numel())) + 1e-7,
                    p->name());
    }
  }
}

TEST_CASE("every gradient is that of finite differences, in every family") {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  for (const std::string& family : kFamilies) {
    CAPTURE(family);
    auto model = tiny_transformer(*backend, DType::F64, 7, family);
    Full full(*model, nullptr);
    // Matrices like those of a trained model: with small ones all but the head hardly matter.
    unsigned seed = 40;
    for (Parameter* p : full.parameters())
      backend->copy(p->value(), random_tensor(*backend, DType::F64, p->shape(), seed++,
                                              p->shape().rank() == 1 ? 1 : 0.3));
    const std::vector<Row> rows = random_rows({9, 21}, 5);
    const TokenBatch batch = make_batch(*backend, pointers(rows));
    const LossScale scale(0.1, {}, 0.1);
    auto loss = [&] {
      Tape tape(*backend, Tape::Mode::NoGrad);
      return to_host_f64(model->loss(tape, batch, scale, {}).value())[0];
    };
    Tape tape(*backend);
    tape.backward(model->loss(tape, batch, scale, {true}));
    for (Parameter* p : full.parameters()) {
      CHECK_MESSAGE(p->has_grad(), p->name());
      const std::vector<double> gradient = to_host_f64(p->grad());
      std::vector<double> values = to_host_f64(p->value());
      double norm = 0;
      for (double g : gradient) norm = std::max(norm, std::abs(g));
      for (std::size_t i = 0; i < values.size(); i += 1 + values.size() / 4) {
        const double v = values[i], h = 1e-4;
        auto at = [&](double x) {
          values[i] = x;
          backend->upload(p->value(), values.data(), values.size() * sizeof(double));
          return loss();
        };
        // Central differences of fourth order.
        const double slope =
            (8 * (at(v + h) - at(v - h)) - (at(v + 2 * h) - at(v - 2 * h))) / (12 * h);
        at(v);
        CHECK_MESSAGE(std::abs(slope - gradient[i]) < 1e-7 * norm + 1e-9, p->name(), " ", i, ": ",
                      gradient[i], ", differences give ", slope);
      }
    }
  }
}

namespace {

struct Steps {
  std::vector<double> losses;
  std::vector<std::vector<double>> values;
};

Steps some_steps(Backend& backend, DType dtype, const std::string& family,
                 const std::string& recompute, int micro_batches) {
  auto model = tiny_transformer(backend, dtype, 7, family);
  Full full(*model, nullptr);
  backend.ledger().reset_peaks();
  model->set_recompute(parse_recompute(recompute));
  TrainerConfig config;
  config.schedule = {ScheduleKind::Constant, 1e-2, 0, 3};
  Trainer trainer(*model, full, config);
  Steps s;
  for (unsigned k = 0; k < 3; ++k) {
    const std::vector<Row> rows = random_rows({9, 40, 3}, 20 + k);
    std::vector<std::vector<const Row*>> micro;
    for (int i = 0; i < micro_batches; ++i)
      micro.push_back(i % 2 ? pointers(rows, 0, 2) : pointers(rows));
    s.losses.push_back(trainer.step(micro).loss);
  }
  for (const Parameter* p : full.parameters()) s.values.push_back(to_host_f64(p->value()));
  const std::int64_t frozen = backend.ledger()[Tag::Weights].live_bytes;  // angles alone
  prove_memory(backend, full, frozen, backend.weight_gradient_matmuls() - trainer.head_gradients(),
               3 * micro_batches);
  const std::int64_t n = model->n_parameters(), F = 4;
  CHECK(full.n_parameters() == n);
  CHECK(backend.ledger()[Tag::Params].live_bytes == n * (dtype == DType::BF16 ? F + 2 : F));
  CHECK(backend.ledger()[Tag::Gradients].live_bytes == n * F);
  CHECK(backend.ledger()[Tag::Optimizer].live_bytes == n * 2 * F);
  // The model's weights are views of what trains: nothing is held twice.
  visit_weights(model->weights(), [](const Weight& w) {
    CHECK_MESSAGE(w.values().storage().tag() == Tag::Params, w.name());
  });
  return s;
}

}  // namespace

TEST_CASE("recomputation changes no bit, and memory is 16 bytes a parameter, in every family") {
  for (const std::string& family : kFamilies)
    for (DType dtype : {DType::F32, DType::BF16}) {
      CAPTURE(family);
      const Steps want = some_steps(*make_cpu_backend(), dtype, family, "none", 2);
      for (const char* recompute : {"gate-up", "keep-attention", "block", "gate-up,block:1"}) {
        CAPTURE(recompute);
        const Steps got = some_steps(*make_cpu_backend(), dtype, family, recompute, 2);
        CHECK(got.losses == want.losses);
        CHECK(got.values == want.values);
      }
    }
}

TEST_CASE("what is saved is the model that was trained, and so is what is left when it ends") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const std::string& name : kFamilyModels) {
    CAPTURE(name);
    ScratchFolder folder;
    auto file = std::make_shared<ModelFile>(runnable_model(folder, name));
    LoadedModel loaded = load_weights(*backend, *file, DType::F32);
    Transformer model(*backend, loaded.config, std::move(loaded.weights), DType::F32, 80);
    const std::vector<std::int32_t> ids = {3, 14, 15, 9, 26, 5};
    const std::vector<double> before = last_logits(model, ids);
    std::vector<double> want;
    SamplingSettings sampling;
    sampling.max_tokens = 12;
    std::vector<std::int32_t> said;
    stdfs::create_directory(folder.file("saved"));
    const std::string tool_use = "/additional_chat_templates/tool_use.jinja";
    stdfs::create_directory(file->path() + "/additional_chat_templates");
    std::ofstream(file->path() + tool_use) << "tools";
    {
      Full full(model, file);
      // The products of what trains sum in another order than the frozen ones.
      check_close(last_logits(model, ids), before, 2e-5, {2e-5}, "begun");
      CHECK_THROWS_AS(Full(model, file), UsageError);
      CHECK_THROWS_AS(full.set_enabled(false), Error);
      TrainerConfig config;
      config.schedule = {ScheduleKind::Constant, 1e-2, 0, 3};
      Trainer trainer(model, full, config);
      for (unsigned k = 0; k < 3; ++k) trainer.step(random_rows({9, 40, 3}, 20 + k, 67));
      want = last_logits(model, ids);
      said = generate(model, ids, sampling).ids;  // over a cache
      CHECK(want != before);
      full.save(folder.file("saved"), {});
    }
    check_close(last_logits(model, ids), want, 2e-5, {2e-5}, "left");
    Tape tape(*backend);
    const std::vector<Row> rows = random_rows({9}, 3, 67);
    model.loss(tape, make_batch(*backend, pointers(rows)), 1.0, {true});
    CHECK(tape.n_nodes() == 0);  // nothing trains any more

    const ModelFile saved(folder.file("saved"));
    CHECK(saved.reader().names() == file->reader().names());
    CHECK(saved.read_tokenizer()->tool_template() == "tools");
    CHECK(read_json(saved.path() + "/config.json") == read_json(file->path() + "/config.json"));
    LoadedModel again = load_weights(*backend, saved, DType::F32);
    Transformer other(*backend, again.config, std::move(again.weights), DType::F32, 80);
    check_close(last_logits(other, ids), want, 2e-5, {2e-5}, "saved");
    CHECK(generate(other, ids, sampling).ids == said);
  }
}

// ---- runs ---------------------------------------------------------------------------------------

namespace {

const std::string kTiny = kFolder + "peft/tiny";

struct Runs {
  ScratchFolder scratch;
  std::string said;

  FinetuneSettings settings(const std::string& out, std::int64_t steps,
                            const std::string& method = "full") const {
    FinetuneSettings s;
    s.model = kTiny, s.data = kFolder + "peft/rows.jsonl", s.out = scratch.file(out);
    s.methods = {method};
    s.device = "cpu", s.dtype = "f32";
    s.batch = 2, s.seq_len = 64, s.lr = 1e-3, s.steps = steps, s.eval_split = 0.2, s.eval_every = 2;
    return s;
  }
  std::string weights(const std::string& out) const {
    return slurp(scratch.file(out) + "/model.safetensors");
  }
};

}  // namespace

TEST_CASE("a run of all weights goes on where it was stopped, to the same bytes") {
  for (const char* dtype : {"f32", "bf16"}) {
    Runs runs;
    FinetuneSettings whole = runs.settings("whole", 6), parts = runs.settings("parts", 6);
    whole.dtype = parts.dtype = dtype;
    whole.packing = parts.packing = true, whole.grad_accum = parts.grad_accum = 2;
    hear_run(whole, -1, runs.said);
    const FinetuneResult stopped = hear_run(parts, 3, runs.said);
    CHECK(stopped.signal == 15);
    parts.resume = true;
    const FinetuneResult r = hear_run(parts, -1, runs.said);
    CHECK(r.steps == 6);
    CHECK(r.base_parameters == 0);
    CHECK(runs.weights("parts") == runs.weights("whole"));
    CHECK(runs.weights("whole") != slurp(kTiny + "/model.safetensors"));
    // The folder is a model's.
    CHECK(open_tokenizer(parts.out)->encode("The Eagle") ==
          open_tokenizer(kTiny)->encode("The Eagle"));
    CHECK_THROWS_WITH_AS(open_method(parts.out), doctest::Contains("is a whole model"), InputError);
    const Json run = read_json(parts.out + "/run.json");
    CHECK(run["parameters"]["trainable"] == r.trainable_parameters);
    CHECK(run["base"]["weights_are"] == "the base's, before they were trained");
    CHECK(slurp(parts.out + "/README.md").find("whole model") != std::string::npos);
  }
}

TEST_CASE("all weights train alone: another method beside is refused before anything is read") {
  Runs runs;
  FinetuneSettings s = runs.settings("out", 2);
  s.model = "nowhere", s.methods = {"full", "lora"};
  CHECK_THROWS_WITH_AS(hear_run(s, -1, runs.said), doctest::Contains("full,lora"), UsageError);
  s.methods = {"full"}, s.rank = 4;
  CHECK_THROWS_WITH_AS(hear_run(s, -1, runs.said), doctest::Contains("rank"), UsageError);
  CHECK(!stdfs::exists(s.out));
}

TEST_CASE("trials before and after one of all weights are the runs that they are alone") {
  Runs runs;
  std::vector<SweepTrial> trials;
  for (const char* method : {"lora", "full", "lora", "full"}) {
    SweepTrial& t = trials.emplace_back();
    t.name = concat(method, trials.size());
    t.settings = runs.settings(t.name, 3, method);
  }
  Ear ear;
  const SweepResult r = sweep({.out = runs.scratch.file("sweep")}, trials, ear, ear.stop);
  CHECK_MESSAGE(r.exit_code == 0, ear.heard);
  const std::string folder = runs.scratch.file("sweep");
  hear_run(runs.settings("alone", 3), -1, runs.said);
  hear_run(runs.settings("lora", 3, "lora"), -1, runs.said);
  for (const char* name : {"full2", "full4"})
    CHECK(slurp(folder + "/" + name + "/model.safetensors") == runs.weights("alone"));
  for (const char* name : {"lora1", "lora3"})
    CHECK(slurp(folder + "/" + name + "/adapter_model.safetensors") ==
          slurp(runs.scratch.file("lora") + "/adapter_model.safetensors"));
}

TEST_CASE("the plan of all weights is the run: peaks by purpose are equal") {
  for (DType dtype : {DType::F32, DType::BF16}) {
    PlanRequest request;
    request.model = tiny_config();
    request.methods.names = {"full"};
    request.compute_dtype = dtype;
    request.batch = 3, request.grad_accum = 2, request.seq_len = 50;
    const Plan plan = plan_training(request);
    CHECK(plan.base_parameters == 0);
    CHECK(
        plan_text(request, plan).find(dtype == DType::F32 ? "full: 16 bytes" : "full: 18 bytes") !=
        std::string::npos);

    auto backend = make_cpu_backend();
    Transformer model(*backend, request.model, random_weights(*backend, request.model, dtype, 1),
                      dtype, 50);
    Full full(model, nullptr);
    Trainer trainer(model, full, {});
    backend->ledger().reset_peaks();
    Row row;
    row.ids.assign(50, 1);
    row.supervised.assign(50, 1);
    const std::vector<const Row*> rows(3, &row);
    trainer.step(std::vector{rows, rows});
    for (const MemoryRow& real : memory_report(*backend).rows)
      for (const MemoryRow& planned : plan.memory.rows)
        if (planned.tag == real.tag && real.tag != "workspace")
          CHECK_MESSAGE(planned.peak_bytes == real.peak_bytes, real.tag);
  }
}
