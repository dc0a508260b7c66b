// Prompt tuning, prefix tuning and LLaMA-Adapter against Hugging Face PEFT: ten steps of training on
// tiny models of several families, adapters that it wrote, greedy generation with a KV cache, and
// what happens to files and to a model that is not theirs. golden/make_virtual_token_golden.py made
// the numbers and describes how; golden/check_virtual_tokens.py checks the opposite direction.
#include <fstream>
#include <functional>
#include <iomanip>

#include "cpu/cpu_backend.h"
#include "golden_steps.h"
#include "harness.h"
#include "io/output_folder.h"
#include "io/safetensors.h"
#include "lora/adapter.h"
#include "methods/llama_adapter.h"
#include "methods/method_set.h"
#include "methods/prefix.h"
#include "methods/prompt.h"
#include "modelfile/load.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "peft_golden.h"
#include "run/methods.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

const Json& golden() {
  static const Json all = Json::parse(std::ifstream(kGolden + "virtual_tokens.json"));
  return all;
}

std::vector<Row> golden_rows() { return rows_of(golden()["rows"]); }

std::unique_ptr<Transformer> load(Backend& backend, const std::string& model, DType dtype) {
  LoadedModel loaded = load_weights(
      backend, ModelFile(std::string(LK_TEST_DATA) + "/golden/models/" + model), dtype);
  return std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights), dtype,
                                       70);
}

std::unique_ptr<MethodFile> open_case(const std::string& method, const std::string& folder) {
  if (method == "prompt") return open_prompt_tuning(folder);
  if (method == "prefix") return open_prefix_tuning(folder);
  return open_llama_adapter(folder);
}

std::unique_ptr<Method> make_case(Transformer& model, const Json& c) {
  const auto n = c["n"].get<std::int64_t>();
  if (c["method"] == "prompt") {
    PromptSettings s{.virtual_tokens = n};
    if (c.contains("text")) s.text = c["text"].get<std::vector<std::int32_t>>();
    return std::make_unique<PromptTuning>(model, s);
  }
  if (c["method"] == "prefix")
    return std::make_unique<PrefixTuning>(
        model,
        PrefixSettings{.virtual_tokens = n, .hidden_size = c.value("hidden", std::int64_t{0})});
  return std::make_unique<LlamaAdapter>(
      model, LlamaAdapterSettings{.length = n, .layers = c["layers"].get<std::int64_t>()});
}

// `count` values of PEFT's trainable tensor number n, from element `first` on.
std::vector<float> by_formula(const Json& c, std::uint64_t n, std::size_t first,
                              std::size_t count) {
  std::vector<float> v(count);
  for (std::size_t i = 0; i < count; ++i)
    v[i] = formula_value(n, first + i) * c["bound"].get<float>();
  return v;
}

void set(Parameter& p, const std::vector<float>& values) {
  REQUIRE(std::ssize(values) == p.numel());
  p.value().backend().upload(p.value(), values.data(), values.size() * sizeof(float));
  p.refresh();
}

// PEFT's initial values, whose tensors are numbered by their sorted names.
void fill_case(Method& method, const Json& c) {
  const std::vector<Parameter*> all = method.parameters();
  if (c.contains("text")) return;
  if (c["method"] == "prompt") {
    set(*all[0], by_formula(c, 0, 0, static_cast<std::size_t>(all[0]->numel())));
  } else if (c["method"] == "llama-adapter") {
    for (std::size_t i = 0; i < all.size(); i += 2)  // the gate sorts before the prompt, and is 0
      set(*all[i], by_formula(c, i + 1, 0, static_cast<std::size_t>(all[i]->numel())));
  } else if (!c.contains("hidden")) {
    const auto& shape = c["names"]["prompt_encoder.embedding.weight"];
    const auto count = shape[0].get<std::size_t>() * shape[1].get<std::size_t>();
    dynamic_cast<PrefixTuning&>(method).set_prefix(by_formula(c, 0, 0, count));
  } else {
    // embedding.weight, transform.0.bias, .0.weight, .2.bias, .2.weight; the last two hold the rows
    // of all layers' keys and values.
    auto size = [](const Parameter* p) { return static_cast<std::size_t>(p->numel()); };
    set(*all[0], by_formula(c, 0, 0, size(all[0])));
    set(*all[1], by_formula(c, 2, 0, size(all[1])));
    set(*all[2], by_formula(c, 1, 0, size(all[2])));
    for (std::size_t i = 3, w = 0, b = 0; i < all.size(); i += 2) {
      set(*all[i], by_formula(c, 4, w, size(all[i])));
      set(*all[i + 1], by_formula(c, 3, b, size(all[i + 1])));
      w += size(all[i]), b += size(all[i + 1]);
    }
  }
}

std::unique_ptr<Trainer> trainer_of(Transformer& model, Method& method) {
  method.lay_out_for_training();
  return std::make_unique<Trainer>(model, method, at_constant_rate(golden()));
}

std::vector<std::int32_t> greedy(Transformer& model) {
  SamplingSettings sampling;
  sampling.max_tokens = 12;
  return generate(model, golden()["prompt"].get<std::vector<std::int32_t>>(), sampling).ids;
}

double loss_of(Transformer& model) { return evaluate(model, golden_rows(), 256).loss; }

}  // namespace

TEST_CASE("ten steps of every method as PEFT trains them") {
  const std::vector<Row> rows = golden_rows();
  std::unique_ptr<Backend> backend = make_cpu_backend();
  for (const auto& [name, c] : golden()["cases"].items()) {
    CAPTURE(name);
    std::unique_ptr<Transformer> model = load(*backend, c["model"].get<std::string>(), DType::F32);
    std::unique_ptr<Method> method = make_case(*model, c);
    fill_case(*method, c);
    std::unique_ptr<Trainer> trainer = trainer_of(*model, *method);
    const std::int64_t before = backend->weight_gradient_matmuls();
    double worst = 0;
    for (std::size_t k = 0; k < 10; ++k) {
      const double loss = step(*trainer, rows, k);
      for (const char* of : {"losses", "losses_f64"})
        worst = std::max(worst, std::abs(loss / c[of][k].get<double>() - 1));
    }
    MESSAGE(name << ": losses differ from PEFT's by " << worst);
    CHECK(worst <= 1e-5);
    CHECK(backend->weight_gradient_matmuls() - before == 10 * method->weight_gradients());
    CHECK(trainer->unmoved().empty());
    CHECK(loss_of(*model) == doctest::Approx(c["after"].get<double>()).epsilon(1e-5));
    CHECK(greedy(*model) == c["greedy"].get<std::vector<std::int32_t>>());
  }
}

TEST_CASE("an adapter that PEFT wrote has PEFT's loss and continues as it does") {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  for (const auto& [name, c] : golden()["cases"].items()) {
    CAPTURE(name);
    std::unique_ptr<Transformer> model = load(*backend, c["model"].get<std::string>(), DType::F32);
    const double base = loss_of(*model);
    const std::unique_ptr<MethodFile> file =
        open_case(c["method"].get<std::string>(), kGolden + "virtual_tokens/" + name);
    CHECK(file->method() == c["method"].get<std::string>());
    {
      std::unique_ptr<Method> method = file->attach(*model);
      CHECK(loss_of(*model) == doctest::Approx(c["after"].get<double>()).epsilon(2e-6));
      CHECK(greedy(*model) == c["greedy"].get<std::vector<std::int32_t>>());
      method->set_enabled(false);
      CHECK(loss_of(*model) == base);
      method->set_enabled(true);
      CHECK(loss_of(*model) != base);
    }
    CHECK(loss_of(*model) == base);  // the method has left the model
  }
}

TEST_CASE("what is saved and read back is the method that was saved") {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  const char* keep = std::getenv("LORIKEET_KEEP_VIRTUAL_TOKENS");  // for check_virtual_tokens.py
  for (const auto& [name, c] : golden()["cases"].items()) {
    CAPTURE(name);
    const ScratchFolder scratch;
    const std::string folder = keep ? concat(keep, "/", name) : scratch.file("adapter");
    make_folders(folder);
    std::unique_ptr<Transformer> model = load(*backend, c["model"].get<std::string>(), DType::F32);
    double trained = 0;
    {
      std::unique_ptr<Method> method = make_case(*model, c);
      fill_case(*method, c);
      std::unique_ptr<Trainer> trainer = trainer_of(*model, *method);
      for (std::size_t k = 0; k < 2; ++k) step(*trainer, golden_rows(), k);
      trained = loss_of(*model);
      method->save(folder, {"org/base", "abc"});
    }
    const std::unique_ptr<MethodFile> file = open_case(c["method"].get<std::string>(), folder);
    CHECK(file->base().name == "org/base");
    CHECK(file->base().fingerprint == "abc");
    const std::unique_ptr<Method> method = file->attach(*model);
    CHECK(loss_of(*model) == doctest::Approx(trained).epsilon(1e-7));
    if (keep) std::ofstream(folder + "/loss.txt") << std::setprecision(17) << trained << "\n";
  }
}

TEST_CASE("recomputing a block changes no bit of a step") {
  const std::vector<Row> rows = golden_rows();
  std::unique_ptr<Backend> backend = make_cpu_backend();
  for (const char* name : {"prompt", "prefix", "prefix_mlp", "adapter_mistral", "adapter_gpt2"}) {
    CAPTURE(name);
    const Json& c = golden()["cases"][name];
    std::vector<std::vector<double>> losses;
    for (const char* recompute : {"none", "gate-up", "keep-attention", "block"}) {
      std::unique_ptr<Transformer> model =
          load(*backend, c["model"].get<std::string>(), DType::F32);
      std::unique_ptr<Method> method = make_case(*model, c);
      fill_case(*method, c);
      model->set_recompute(parse_recompute(recompute));
      std::unique_ptr<Trainer> trainer = trainer_of(*model, *method);
      losses.emplace_back();
      for (std::size_t k = 0; k < 4; ++k) losses.back().push_back(step(*trainer, rows, k));
    }
    for (std::size_t i = 1; i < losses.size(); ++i) CHECK(losses[i] == losses[0]);
  }
}

TEST_CASE("methods train together: LoRA with a prompt and a prefix, in BF16 too") {
  const std::vector<Row> rows = golden_rows();
  std::unique_ptr<Backend> backend = make_cpu_backend();
  for (DType dtype : {DType::F32, DType::BF16}) {
    std::unique_ptr<Transformer> model = load(*backend, "tied_gqa", dtype);
    std::vector<std::unique_ptr<Method>> methods;
    LoraConfig lora;
    lora.shape = {2, 4, 0};
    methods.push_back(std::make_unique<Adapter>(*model, lora));
    methods.push_back(std::make_unique<PromptTuning>(*model, PromptSettings{.virtual_tokens = 3}));
    methods.push_back(std::make_unique<PrefixTuning>(*model, PrefixSettings{.virtual_tokens = 2}));
    MethodSet all(std::move(methods));
    std::unique_ptr<Trainer> trainer = trainer_of(*model, all);
    const double first = step(*trainer, rows, 0);
    double last = first;
    for (int k = 0; k < 20; ++k) last = step(*trainer, rows, 0);
    CHECK(last < first);
    CHECK(trainer->unmoved().empty());

    const ScratchFolder folder;
    all.save(folder.path(), {"a/base", "1234"});
    CHECK(open_method(folder.path())->method() == "lora,prompt,prefix");
    CHECK(open_method(folder.file("prefix"))->method() == "prefix");
    std::filesystem::remove_all(folder.file("prompt"));
    CHECK_THROWS_WITH_AS(open_method(folder.path()), doctest::Contains("prompt"), InputError);
    for (const char* list : {"[]", R"({"methods":["lora"]})", R"({"methods":["lora","nope"]})",
                             R"({"methods":["lora","lora"]})"}) {
      folder.write("methods.json", list);
      CHECK_THROWS_WITH_AS(open_method(folder.path()), doctest::Contains("methods.json"),
                           InputError);
    }
  }
}

TEST_CASE(
    "a place that is taken, a model that does not fit and settings out of range are refused") {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> llama = load(*backend, "tied_gqa", DType::F32),
                               gemma = load(*backend, "gemma3", DType::F32);
  CHECK_THROWS_AS(LlamaAdapter(*gemma, {}), UsageError);
  CHECK_THROWS_AS(LlamaAdapter(*llama, {.layers = 3}), UsageError);
  CHECK_THROWS_AS(PromptTuning(*llama, {.virtual_tokens = 0}), UsageError);
  CHECK_THROWS_AS(PromptTuning(*llama, {.text = {1000000}}), UsageError);
  CHECK_THROWS_AS(PrefixTuning(*llama, {.virtual_tokens = -1}), UsageError);
  const PrefixTuning prefix(*llama, {});
  CHECK_THROWS_AS(LlamaAdapter(*llama, {.layers = 1}), UsageError);
  const PromptTuning prompt(*llama, {});
  CHECK_THROWS_AS(PromptTuning(*llama, {}), UsageError);
}

TEST_CASE("files that are not the method's, or not the model's, are refused by name") {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> model = load(*backend, "tied_gqa", DType::F32);
  const ScratchFolder scratch;
  const std::string folder = scratch.file("adapter");
  make_folders(folder);
  // The config of a case with some keys changed, and its weights.
  auto with = [&](const std::string& name, const std::string& method,
                  const std::function<void(Json&)>& change) {
    const std::string from = kGolden + "virtual_tokens/" + name + "/";
    Json config = Json::parse(std::ifstream(from + "adapter_config.json"));
    change(config);
    std::ofstream(folder + "/adapter_config.json") << config;
    std::ofstream(folder + "/adapter_model.safetensors", std::ios::binary)
        << std::ifstream(from + "adapter_model.safetensors", std::ios::binary).rdbuf();
    try {
      open_case(method, folder)->attach(*model);
      return std::string();
    } catch (const InputError& e) {
      return std::string(e.what());
    }
  };
  auto says = [](const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != text.npos, text, " has no ", part);
  };
  CHECK(with("prompt", "prompt", [](Json&) {}) == "");
  says(with("prompt", "prompt", [](Json& c) { c["peft_type"] = "P_TUNING"; }), "P_TUNING");
  says(with("prompt", "prompt", [](Json& c) { c["new_key"] = 3; }), "new_key");
  says(with("prompt", "prompt", [](Json& c) { c["modules_to_save"] = {"lm_head"}; }),
       "modules_to_save");
  says(with("prompt", "prompt", [](Json& c) { c["num_virtual_tokens"] = 6; }),
       "prompt_embeddings has shape");
  says(with("prompt", "prompt", [](Json& c) { c["num_virtual_tokens"] = -1; }),
       "num_virtual_tokens");
  says(with("prompt", "prompt", [](Json& c) { c["num_transformer_submodules"] = 2; }),
       "num_transformer_submodules");
  says(with("prompt", "prompt", [](Json& c) { c["token_dim"] = 31; }), "token_dim");
  CHECK(with("prefix", "prefix", [](Json&) {}) == "");
  says(with("prefix", "prefix", [](Json& c) { c["num_layers"] = 3; }), "num_layers");
  says(with("prefix", "prefix", [](Json& c) { c["num_attention_heads"] = 4; }),
       "num_attention_heads");
  CHECK(with("adapter", "llama-adapter", [](Json&) {}) == "");
  says(with("adapter", "llama-adapter", [](Json& c) { c["target_modules"] = "attn"; }),
       "target_modules");
  says(with("adapter", "llama-adapter", [](Json& c) { c["adapter_layers"] = 9; }),
       "adapter_layers");
  says(with("adapter", "llama-adapter", [](Json& c) { c["adapter_layers"] = 2; }), "no tensor");
  CHECK(loss_of(*model) > 0);  // every refusal left the model usable
}
