// Orthogonality against oracles: LoRA trained together with a prefix as PEFT trains them, and with
// bottlenecks as adapter-hub's adapters does: losses and parameters of ten steps, logits, and files
// that open alone and together. golden/make_combined_golden.py made the numbers and describes them.
#include <fstream>
#include <functional>
#include <map>

#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "golden_steps.h"
#include "harness.h"
#include "lora/adapter.h"
#include "methods/bottleneck.h"
#include "methods/method_set.h"
#include "methods/prefix.h"
#include "modelfile/load.h"
#include "modelfile/model_file.h"
#include "nn/evaluation.h"
#include "peft_golden.h"
#include "run/methods.h"
#include "scratch_folder.h"
#include "tensor/sample.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kFolder = std::string(LK_TEST_DATA) + "/golden/";
// Ten AdamW steps in float32 move a parameter from what they are in float64 by 1e-6 at most.
constexpr double kTolerance = 2e-5;
constexpr const char* kPrefix = "prompt_encoder.embedding.weight";

std::unique_ptr<Transformer> load(Backend& backend, const Json& json) {
  LoadedModel loaded = load_weights(
      backend, ModelFile(kFolder + "models/" + json["model"].get<std::string>()), DType::F32);
  return std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights),
                                       DType::F32, 80);
}

// LoRA and the other method of a case on one model.
struct Pair {
  Adapter* lora;
  Method* other;
  std::unique_ptr<MethodSet> both;

  Pair(Transformer& model, const Json& json) {
    LoraConfig config;
    config.shape.rank = json["rank"].get<std::int64_t>();
    config.shape.alpha = json["alpha"].get<double>();
    config.targets = json["targets"].get<std::vector<std::string>>();
    std::vector<std::unique_ptr<Method>> methods;
    auto adapter = std::make_unique<Adapter>(model, config);
    lora = adapter.get();
    methods.push_back(std::move(adapter));
    if (json["other"] == "prefix")
      methods.push_back(std::make_unique<PrefixTuning>(
          model, PrefixSettings{.virtual_tokens = json["n"].get<std::int64_t>()}));
    else
      methods.push_back(std::make_unique<Bottleneck>(
          model, BottleneckConfig::of_kind("houlsby", model.config().hidden_size /
                                                          json["reduction"].get<std::int64_t>())));
    other = methods.back().get();
    both = std::make_unique<MethodSet>(std::move(methods));
  }
  // The parameters that the oracle has one by one, by its names: all but a prefix's.
  std::map<std::string, Parameter*> single() const {
    std::map<std::string, Parameter*> all;
    for (Parameter* p : lora->parameters()) all[p->name()] = p;
    if (const auto* bottleneck = dynamic_cast<const Bottleneck*>(other))
      for (const StoredParameter& stored : bottleneck->stored("lorikeet"))
        all[stored.name] = stored.parameter;
    return all;
  }
};

// What PEFT holds in one matrix: rows of n virtual tokens, each with K and V of layer 0, of layer 1.
std::vector<float> prefix_values(const PrefixTuning& prefix) {
  std::vector<std::vector<float>> matrices;
  for (const Parameter* p : prefix.parameters()) matrices.push_back(values(*p));
  const std::int64_t width = prefix.parameters()[0]->shape()[1];
  std::vector<float> all;
  for (std::int64_t row = 0; row * width < std::ssize(matrices[0]); ++row)
    for (const std::vector<float>& m : matrices)
      all.insert(all.end(), m.begin() + row * width, m.begin() + (row + 1) * width);
  return all;
}

std::vector<float> by_formula(std::uint64_t n, std::int64_t count, float bound) {
  std::vector<float> v(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = formula_value(n, i) * bound;
  return v;
}

// Initial values: LoRA's parameters are numbered first, then the other method's, each by name.
void fill(const Pair& pair, const Json& json) {
  std::uint64_t n = 0;
  auto set = [&](Parameter& p, double bound) {
    const std::vector<float> v = by_formula(n++, p.numel(), static_cast<float>(bound));
    p.value().backend().upload(p.value(), v.data(), v.size() * sizeof(float));
    p.refresh();
  };
  const std::map<std::string, Parameter*> all = pair.single();
  for (const auto& [name, p] : all)
    if (name.find(".lora_A.") != name.npos)
      set(*p, 1 / std::sqrt(static_cast<double>(p->shape()[1])));
    else if (name.find(".lora_B.") != name.npos)
      set(*p, json["b_bound"].get<double>());
  const auto scale = json["scale"].get<float>();
  if (auto* prefix = dynamic_cast<PrefixTuning*>(pair.other))
    prefix->set_prefix(by_formula(n, prefix->n_parameters(), scale));
  else
    for (const auto& [name, p] : all)
      if (name.find(".lora_") == name.npos) set(*p, scale);
}

// The logits (V) after the last token of the case's text.
std::vector<double> last_logits(Transformer& model, const Json& json) {
  const auto ids = json["ids"].get<std::vector<std::int32_t>>();
  const std::vector<double> all = to_host_f64(model.logits(make_prompt(model.backend(), ids, 0)));
  return {all.end() - static_cast<std::ptrdiff_t>(model.config().vocab_size), all.end()};
}

// The logits with both methods and with each alone.
struct Logits {
  std::vector<double> both, lora, other;
};

Logits logits_of(Transformer& model, const Pair& pair, const Json& json) {
  Logits logits;
  logits.both = last_logits(model, json);
  pair.other->set_enabled(false);
  logits.lora = last_logits(model, json);
  pair.other->set_enabled(true);
  pair.lora->set_enabled(false);
  logits.other = last_logits(model, json);
  pair.lora->set_enabled(true);
  CHECK(last_logits(model, json) == logits.both);
  return logits;
}

void check_values(const std::vector<float>& got, const Json& want, const std::string& name,
                  double& worst) {
  REQUIRE_MESSAGE(got.size() == want.size(), name);
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(got[i] - want[i].get<double>()));
}

void check_case(Backend& backend, const std::string& name) {
  CAPTURE(name);
  const Json json = Json::parse(std::ifstream(kFolder + "methods/" + name + ".json"));
  const std::vector<Row> rows = rows_of(json["rows"]);
  const std::unique_ptr<Transformer> model = load(backend, json);
  const std::vector<double> base = last_logits(*model, json);
  const ScratchFolder folder;
  Logits trained;
  {
    const Pair pair(*model, json);
    fill(pair, json);
    pair.both->lay_out_for_training();
    const std::int64_t before = backend.weight_gradient_matmuls();
    double loss_error = 0, value_error = 0;
    {
      Trainer trainer(*model, *pair.both, at_constant_rate(json));
      for (std::size_t k = 0; k < 10; ++k) {
        const double loss = step(trainer, rows, k);
        for (const char* of : {"losses", "losses_f64"})
          loss_error = std::max(loss_error, std::abs(loss / json[of][k].get<double>() - 1));
      }
      CHECK(trainer.unmoved().empty());
    }
    CHECK(backend.weight_gradient_matmuls() - before == 10 * pair.both->weight_gradients());

    const std::map<std::string, Parameter*> single = pair.single();
    for (const auto& [own, p] : single)
      check_values(values(*p), json["after"].at(own), own, value_error);
    const auto* prefix = dynamic_cast<const PrefixTuning*>(pair.other);
    if (prefix) check_values(prefix_values(*prefix), json["after"][kPrefix], kPrefix, value_error);
    CHECK(json["after"].size() == single.size() + (prefix ? 1 : 0));
    MESSAGE(name << ": losses differ by " << loss_error << ", parameters by " << value_error);
    CHECK(loss_error < kTolerance);
    CHECK(value_error < kTolerance);

    trained = logits_of(*model, pair, json);
    const auto want = [&](const char* key) { return json[key].get<std::vector<double>>(); };
    check_close(trained.both, want("logits"), kTolerance, {kTolerance}, name);
    check_close(trained.lora, want("logits_lora"), kTolerance, {kTolerance}, name + ", LoRA alone");
    check_close(trained.other, want("logits_other"), kTolerance, {kTolerance},
                name + ", without LoRA");
    pair.both->save(folder.path(), {"org/base", "abc"});
  }
  CHECK(last_logits(*model, json) == base);
  const auto other = json["other"].get<std::string>();
  const auto read_back = [&](const std::string& path) {
    const std::unique_ptr<Method> method = open_method(path)->attach(*model);
    return last_logits(*model, json);
  };
  CHECK(open_method(folder.path())->method() == "lora," + other);
  CHECK(read_back(folder.path()) == trained.both);
  CHECK(read_back(folder.file("lora")) == trained.lora);
  CHECK(read_back(folder.file(other)) == trained.other);
  CHECK(last_logits(*model, json) == base);
}

void on_every_device(const std::function<void(Backend&)>& body) {
  body(*open_device("cpu"));
  if (n_gpus() > 0) body(*open_device("cuda:0"));
}

}  // namespace

TEST_CASE("LoRA and a prefix train together as in PEFT, and their files open alone and together") {
  on_every_device([](Backend& backend) { check_case(backend, "combined_prefix"); });
}

TEST_CASE("LoRA and bottlenecks train together as in adapters, and open alone and together") {
  on_every_device([](Backend& backend) { check_case(backend, "combined_bottleneck"); });
}

TEST_CASE("two methods compute the same in either order, or are refused before a model is there") {
  const std::vector<std::string> names = {"lora",       "prompt", "prefix", "llama-adapter",
                                          "bottleneck", "bitfit", "ia3",    "full"};
  const std::vector<Row> rows = random_rows({20, 31}, 5);
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  auto loss = [&](const std::string& first, const std::string& second) {
    MethodConfig config;
    config.names = {first, second}, config.lora = tiny_lora();
    ModelConfig tiny = tiny_config();
    tiny.n_heads = 4, tiny.n_kv_heads = 2, tiny.head_dim = tiny.hidden_size / 4;
    auto model = std::make_unique<Transformer>(
        *backend, tiny, random_weights(*backend, tiny, DType::F32, 7), DType::F32, 256);
    const auto both = make_method(*model, config);
    for (Parameter* p : both->parameters()) {  // none may add nothing, as many do at first
      std::vector<float> values;
      for (double x : random_values(p->numel(), static_cast<unsigned>(p->name().size()), 0.05))
        values.push_back(static_cast<float>(x));
      p->value().backend().upload(p->value(), values.data(), values.size() * sizeof(float));
      p->refresh();
    }
    return evaluate(*model, rows, 64).loss;
  };
  int together = 0;
  for (std::size_t i = 0; i < names.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) {
      CAPTURE(names[i]);
      CAPTURE(names[j]);
      const auto accepted = [](const std::string& first, const std::string& second) {
        try {
          check_methods({first, second});
        } catch (const UsageError&) {
          return false;
        }
        return true;
      };
      const bool one = accepted(names[i], names[j]);
      CHECK(one == accepted(names[j], names[i]));
      if (!one) continue;
      ++together;
      CHECK(loss(names[i], names[j]) == loss(names[j], names[i]));
    }
  CHECK(together == 17);
}
