// (IA)3, trained biases and bottleneck adapters against PEFT and adapter-hub's adapters: losses of ten
// steps, tensors, logits, files. golden/make_method_golden.py made the numbers and describes them;
// golden/check_methods.py checks the opposite direction.
#include <algorithm>
#include <fstream>
#include <functional>

#include "cuda/open_device.h"
#include "golden_steps.h"
#include "harness.h"
#include "io/json.h"
#include "lora/trainer.h"
#include "methods/bitfit.h"
#include "methods/bottleneck.h"
#include "methods/bottleneck_config.h"
#include "methods/ia3.h"
#include "modelfile/load.h"
#include "modelfile/model_file.h"
#include "nn/generate.h"
#include "run/merge_vectors.h"
#include "run/methods.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kFolder = std::string(LK_TEST_DATA) + "/golden/";
const char* const kCases[] = {"ia3_llama",           "ia3_gpt2",           "ia3_qwen2",
                              "ia3_gemma3",          "ia3_feedforward",    "bias_llama",
                              "bias_qwen2",          "bias_all",           "bias_gpt2",
                              "bottleneck_pfeiffer", "bottleneck_houlsby", "bottleneck_parallel",
                              "bottleneck_gpt2",     "bottleneck_mistral"};

Json golden(const std::string& name) {
  return Json::parse(std::ifstream(kFolder + "methods/" + name + ".json"));
}

std::unique_ptr<Transformer> load(Backend& backend, const Json& json, DType dtype = DType::F32) {
  LoadedModel loaded = load_weights(
      backend, ModelFile(kFolder + "models/" + json["model"].get<std::string>()), dtype);
  return std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights), dtype,
                                       80);
}

template <class T>
std::vector<T> list_or_none(const Json& json, const char* key) {
  return json.contains(key) ? json[key].get<std::vector<T>>() : std::vector<T>{};
}

// Element i of parameter n in (-1, 1), exact in float: the formula of make_method_golden.py.
float formula_value(std::uint64_t n, std::uint64_t i) {
  std::uint64_t z = (n << 32) + i + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<float>((2.0 * static_cast<double>(z >> 40) + 1.0) / 16777216.0 - 1.0);
}

void fill_by_formula(std::vector<StoredParameter> stored, float scale, float centre) {
  std::sort(stored.begin(), stored.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  for (std::size_t n = 0; n < stored.size(); ++n) {
    Parameter& p = *stored[n].parameter;
    std::vector<float> v(static_cast<std::size_t>(p.numel()));
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = formula_value(n, i) * scale + centre;
    p.value().backend().upload(p.value(), v.data(), v.size() * sizeof(float));
    p.refresh();
  }
}

// The method of a case on a model, with its initial values, and how its parameters are stored.
struct Trained {
  std::unique_ptr<Method> method;
  std::vector<StoredParameter> stored;
};
Trained make(Transformer& model, const std::string& name, const Json& json) {
  const auto scale = json["scale"].get<float>();
  const auto targets = list_or_none<std::string>(json, "targets");
  Trained t;
  if (name.starts_with("ia3")) {
    Ia3Config config{targets, {}};
    if (json.contains("feedforward"))
      config.feed_forward = list_or_none<std::string>(json, "feedforward");
    auto ia3 = std::make_unique<Ia3>(model, config);
    t.stored = ia3->stored();
    fill_by_formula(t.stored, scale, 1);
    t.method = std::move(ia3);
  } else if (name.starts_with("bias")) {
    auto bitfit = std::make_unique<Bitfit>(model, BitfitConfig{targets});
    t.stored = bitfit->stored();
    if (!bitfit->own()) fill_by_formula(t.stored, scale, 0);
    t.method = std::move(bitfit);
  } else {
    BottleneckConfig config = read_bottleneck_config(
        json["config"]["config"], model.config().hidden_size, model.config().n_layers, name);
    auto bottleneck = std::make_unique<Bottleneck>(model, config);
    t.stored = bottleneck->stored("lorikeet");
    fill_by_formula(t.stored, scale, 0);
    t.method = std::move(bottleneck);
  }
  return t;
}

// The logits (V) after the last token of the case's text.
std::vector<double> last_logits(Transformer& model, const Json& json) {
  const auto ids = json["ids"].get<std::vector<std::int32_t>>();
  const std::vector<double> all = to_host_f64(model.logits(make_prompt(model.backend(), ids, 0)));
  return {all.end() - static_cast<std::ptrdiff_t>(model.config().vocab_size), all.end()};
}

void on_every_device(const std::function<void(Backend&)>& body) {
  body(*open_device("cpu"));
  if (n_gpus() > 0) body(*open_device("cuda:0"));
}

void check_ten_steps(Backend& backend, const std::string& name) {
  CAPTURE(name);
  const Json json = golden(name);
  const std::vector<Row> rows = rows_of(json["rows"]);
  auto model = load(backend, json);
  Trained t = make(*model, name, json);
  Json shapes = Json::object();
  for (const StoredParameter& p : t.stored) {
    Json& shape = shapes[p.name] = Json::array();
    for (int i = 0; i < p.shape.rank(); ++i) shape.push_back(p.shape[i]);
  }
  CHECK(shapes == json["tensors"]);
  const std::int64_t before = backend.weight_gradient_matmuls();
  {
    Trainer trainer(*model, *t.method, at_constant_rate(json));
    const auto want = json["losses"].get<std::vector<double>>();
    for (std::size_t k = 0; k < 10; ++k) {
      const double loss = step(trainer, rows, k);
      CHECK_MESSAGE(std::abs(loss / want[k] - 1) < 2e-5, "step ", k, ": ", loss, ", expected ",
                    want[k]);
    }
    CHECK(trainer.unmoved().empty());
  }
  CHECK(backend.weight_gradient_matmuls() - before == 10 * t.method->weight_gradients());
  // Adam moves an element by about the rate a step whatever its gradient, so one whose gradient is
  // all rounding may differ by a part of it.
  const auto lr = json["lr"].get<double>();
  for (const StoredParameter& p : t.stored) {
    const auto want = json["after"][p.name].get<std::vector<double>>();
    const std::vector<double> got = to_host_f64(p.parameter->value());
    for (std::size_t i = 0; i < want.size(); ++i)
      CHECK_MESSAGE(std::abs(got[i] - want[i]) < 0.05 * lr, p.name, " ", i, ": ", got[i],
                    ", expected ", want[i]);
  }
  check_close(last_logits(*model, json), json["logits"].get<std::vector<double>>(), 1e-4, {1e-3},
              name + " logits");
}

}  // namespace

TEST_CASE("ten steps give the losses, tensors and logits of PEFT and adapters") {
  on_every_device([](Backend& backend) {
    for (const char* name : kCases) check_ten_steps(backend, name);
  });
}

TEST_CASE("a method that ends leaves the base bit for bit, and disabled it is not there") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : kCases) {
    CAPTURE(name);
    const Json json = golden(name);
    auto model = load(*backend, json);
    const std::vector<double> base = last_logits(*model, json);
    {
      Trained t = make(*model, name, json);
      if (json["scale"] != 0) CHECK(last_logits(*model, json) != base);
      t.method->set_enabled(false);
      CHECK(last_logits(*model, json) == base);
      t.method->set_enabled(true);
      if (json["scale"] != 0) CHECK(last_logits(*model, json) != base);
    }
    CHECK(last_logits(*model, json) == base);
  }
}

TEST_CASE("files round trip: a folder read back computes the same logits, bit for bit") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : kCases) {
    CAPTURE(name);
    const Json json = golden(name);
    auto model = load(*backend, json);
    ScratchFolder folder;
    std::vector<double> want;
    {
      Trained t = make(*model, name, json);
      Trainer trainer(*model, *t.method, at_constant_rate(json));
      step(trainer, rows_of(json["rows"]), 0);
      want = last_logits(*model, json);
      t.method->save(folder.path(), {"org/base", "abc"});
    }
    const auto file = open_method(folder.path());
    CHECK(file->base().name == "org/base");
    CHECK(file->base().fingerprint == "abc");
    CHECK(std::string(name).starts_with(file->method() == "bitfit" ? "bias" : file->method()));
    {
      const auto method = file->attach(*model);
      CHECK(method->name() == file->method());
      CHECK(last_logits(*model, json) == want);
    }
    // What the library wrote, we write too, but for names and its version.
    if (json["config"].is_null()) continue;
    const Json ours = Json::parse(std::ifstream(folder.file("adapter_config.json")));
    for (const auto& [key, value] : json["config"].items()) {
      if (key == "peft_version" || key == "base_model_name_or_path" || key == "model_name")
        continue;
      Json own = ours.value(key, Json());
      if (own.is_array()) std::sort(own.begin(), own.end());
      CHECK_MESSAGE(own == value, key, ": ", own.dump(), ", expected ", value.dump());
    }
  }
}

TEST_CASE("generation with a KV cache chooses what whole sequences choose") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : kCases) {
    CAPTURE(name);
    const Json json = golden(name);
    auto model = load(*backend, json);
    Trained t = make(*model, name, json);
    std::vector<std::int32_t> text = json["ids"].get<std::vector<std::int32_t>>();
    SamplingSettings settings;
    settings.max_tokens = 8;
    const Generation g = generate(*model, text, settings);
    REQUIRE(g.ids.size() == 8);
    for (std::int32_t id : g.ids) {
      const std::vector<double> all = to_host_f64(model->logits(make_prompt(*backend, text, 0)));
      const auto last = all.end() - static_cast<std::ptrdiff_t>(model->config().vocab_size);
      CHECK(id == std::max_element(last, all.end()) - last);
      text.push_back(id);
    }
  }
}

TEST_CASE("recomputing blocks changes no bit of a step") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : kCases) {
    CAPTURE(name);
    const Json json = golden(name);
    std::vector<std::vector<double>> after;
    for (const char* recompute : {"none", "gate-up", "keep-attention", "block"}) {
      auto model = load(*backend, json);
      model->set_recompute(parse_recompute(recompute));
      Trained t = make(*model, name, json);
      Trainer trainer(*model, *t.method, at_constant_rate(json));
      step(trainer, rows_of(json["rows"]), 0);
      std::vector<double> all;
      for (Parameter* p : t.method->parameters())
        for (double v : to_host_f64(p->value())) all.push_back(v);
      after.push_back(std::move(all));
    }
    CHECK(after[1] == after[0]);
    CHECK(after[2] == after[0]);
  }
}

TEST_CASE("a step in BF16 has the loss of F32 to its rounding") {
  on_every_device([](Backend& backend) {
    for (const char* name : {"ia3_llama", "bias_gpt2", "bottleneck_houlsby"}) {
      const Json json = golden(name);
      auto model = load(backend, json, DType::BF16);
      Trained t = make(*model, name, json);
      Trainer trainer(*model, *t.method, at_constant_rate(json));
      const double want = json["losses"][0].get<double>();
      CHECK(step(trainer, rows_of(json["rows"]), 0) == doctest::Approx(want).epsilon(0.02));
      step(trainer, rows_of(json["rows"]), 1);
    }
  });
}

TEST_CASE("(IA)3's file lists each module whose input is scaled as a target, by the same name") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const std::vector<std::string>& targets :
       {std::vector<std::string>{}, {"all-linear"}, {"c_attn", "c_proj"}}) {
    auto model = load(*backend, golden("ia3_gpt2"));
    Ia3Config config;
    config.targets = targets;
    Ia3 made(*model, config);
    ScratchFolder folder;
    made.save(folder.path(), {});
    const Json file = Json::parse(std::ifstream(folder.file("adapter_config.json")));
    const Json& names = file["target_modules"];
    CHECK(file["feedforward_modules"] == Json{"mlp.c_proj"});
    CHECK(std::find(names.begin(), names.end(), "mlp.c_proj") != names.end());
    auto again = load(*backend, golden("ia3_gpt2"));
    CHECK(open_method(folder.path())->attach(*again)->n_parameters() == made.n_parameters());
  }
}

TEST_CASE("(IA)3 on some layers lists no name that means others too") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  auto model = load(*backend, golden("ia3_llama"));
  Ia3Config config;
  config.targets = {"model.layers.1.self_attn.k_proj", "model.layers.1.mlp.down_proj"};
  Ia3 made(*model, config);
  ScratchFolder folder;
  made.save(folder.path(), {});
  const Json file = Json::parse(std::ifstream(folder.file("adapter_config.json")));
  CHECK(file["target_modules"] == Json(config.targets));
  CHECK(file["feedforward_modules"] == Json{"model.layers.1.mlp.down_proj"});
  auto again = load(*backend, golden("ia3_llama"));
  CHECK(open_method(folder.path())->attach(*again)->n_parameters() == made.n_parameters());
}

TEST_CASE("keys that can't be obeyed are refused by name") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  struct Change {
    const char* name;
    const char* key;  // "config.ln_after": inside config
    Json value;
  };
  const Change changes[] = {
      {"ia3_llama", "exclude_modules", Json::array({"k_proj"})},
      {"ia3_llama", "modules_to_save", Json::array({"lm_head"})},
      {"ia3_llama", "target_modules", ".*_proj"},
      {"ia3_llama", "target_modules", Json::array({"k_proj", "nothing"})},
      {"ia3_llama", "feedforward_modules", 3},
      {"ia3_llama", "new_key", 1},
      {"bias_llama", "target_modules", Json::array({1})},
      {"bias_llama", "bias", "all"},
      {"bottleneck_pfeiffer", "hidden_size", 31},
      {"bottleneck_pfeiffer", "config.ln_after", true},
      {"bottleneck_pfeiffer", "config.use_gating", true},
      {"bottleneck_pfeiffer", "config.scaling", "learned"},
      {"bottleneck_pfeiffer", "config.non_linearity", "gelu"},
      {"bottleneck_pfeiffer", "config.inv_adapter", "nice"},
      {"bottleneck_pfeiffer", "config.phm_layer", true},
      {"bottleneck_pfeiffer", "config.original_ln_after", false},
      {"bottleneck_pfeiffer", "config.residual_before_ln", "post_add"},
      {"bottleneck_pfeiffer", "config.reduction_factor", 0},
      {"bottleneck_pfeiffer", "config.reduction_factor", Json{{"0", 4}}},
      {"bottleneck_pfeiffer", "config.leave_out", "0"},
      {"bottleneck_pfeiffer", "config.stochastic_depth", 0.1},
      {"bottleneck_pfeiffer", "config.dropout", 1.0},
      {"bottleneck_pfeiffer", "config.architecture", "lora"},
      {"bottleneck_pfeiffer", "config.new_key", 1},
  };
  for (const Change& change : changes) {
    const std::string key = change.key;
    CAPTURE(key);
    const Json json = golden(change.name);
    auto model = load(*backend, json);
    ScratchFolder folder;
    make(*model, change.name, json).method->save(folder.path(), {});
    Json config = Json::parse(std::ifstream(folder.file("adapter_config.json")));
    const bool inner = key.starts_with("config.");
    (inner ? config["config"] : config)[inner ? key.substr(7) : key] = change.value;
    folder.write("adapter_config.json", config.dump());
    try {
      open_method(folder.path())->attach(*model);
      FAIL("accepted");
    } catch (const InputError& error) {
      const std::string what = error.what(), name = inner ? key.substr(7) : key;
      const bool names = what.find(name) != what.npos || what.find("`targets`") != what.npos;
      CHECK_MESSAGE(names, what);
    }
    CHECK_NOTHROW(make(*model, change.name, json));  // the model is the base again
  }
}

TEST_CASE("weights that do not fit are refused by tensor, and pickles by name") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  const Json json = golden("bottleneck_pfeiffer");
  auto model = load(*backend, json);
  ScratchFolder folder;
  make(*model, "bottleneck_pfeiffer", json).method->save(folder.path(), {});
  const std::string path = folder.file("adapter.safetensors");
  auto refused = [&](const std::string& text) {
    try {
      open_method(folder.path())->attach(*model);
      FAIL("accepted");
    } catch (const InputError& error) {
      CHECK_MESSAGE(std::string(error.what()).find(text) != std::string::npos, error.what());
    }
  };
  std::vector<SafetensorsEntry> tensors;
  {
    const SafetensorsFile file(path);
    for (const std::string& name : file.names()) {
      const Shape shape = file.shape(name);
      tensors.push_back({name, shape, std::vector<float>(static_cast<std::size_t>(shape.numel()))});
    }
  }
  auto with = [&](const std::function<void(std::vector<SafetensorsEntry>&)>& change) {
    std::vector<SafetensorsEntry> changed = tensors;
    change(changed);
    write_safetensors(path, changed, {});
  };
  with([](auto& t) { t.pop_back(); });
  refused("is missing");
  with([](auto& t) { t.push_back({"model.layers.7.output_adapters.adapters.x.up", {1}, {0.0f}}); });
  refused("layers.7");
  with([](auto& t) { t[0].shape = {1, 8}; });
  refused("shape");
  std::filesystem::rename(path, folder.file("pytorch_adapter.bin"));
  refused("pickle");
}

TEST_CASE("vectors merge exactly: the merged model computes what base and vectors compute") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  for (const char* name : {"ia3_llama", "ia3_gpt2", "ia3_feedforward", "bias_qwen2", "bias_gpt2"}) {
    CAPTURE(name);
    const Json json = golden(name);
    auto model = load(*backend, json);
    ScratchFolder folder;
    std::vector<double> want;
    {
      Trained t = make(*model, name, json);
      Trainer trainer(*model, *t.method, at_constant_rate(json));
      step(trainer, rows_of(json["rows"]), 0);
      want = last_logits(*model, json);
      std::filesystem::create_directory(folder.file("vectors"));
      t.method->save(folder.file("vectors"), {});
    }
    const std::string base = kFolder + "models/" + json["model"].get<std::string>();
    VectorMergeSettings s{.model = base,
                          .adapter = folder.file("vectors"),
                          .out = folder.file("merged"),
                          .type = "f32",
                          .verify = false};
    MergeListener quiet;
    CHECK(!merge_vectors(s, quiet).logit_difference);
    LoadedModel loaded = load_weights(*backend, ModelFile(folder.file("merged")), DType::F32);
    Transformer merged(*backend, loaded.config, std::move(loaded.weights), DType::F32, 80);
    // Two ways to multiply the same numbers: l (x w) and x (l w).
    check_close(last_logits(merged, json), want, 2e-5, {2e-5}, concat(name, " merged"));
  }
  CHECK_THROWS_AS(merges_as_vectors("bottleneck"), UsageError);
  CHECK(!merges_as_vectors("lora"));
}
