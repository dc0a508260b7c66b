// Logits of whole models against transformers (golden/make_model_golden.py), on every device that
// is present: would catch a wrong rotation, norm, head grouping, bias, tied head, row permutation
// or rope scaling.
#include <algorithm>
#include <filesystem>

#include "cuda/open_device.h"
#include "io/safetensors.h"
#include "modelfile/load.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "smollm2.h"
#include "tensor_file.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kModels = std::string(LK_TEST_DATA) + "/golden/models/";
// The claim: float32 logits within 1e-4 of the largest logit.
constexpr double kLogits = 1e-4;

std::vector<double> numbers(const SafetensorsFile& file, const std::string& name) {
  const std::vector<float> v = read_all(file, name);
  return {v.begin(), v.end()};
}

std::vector<std::int32_t> integers(const SafetensorsFile& file, const std::string& name) {
  std::vector<double> v = numbers(file, name);
  return {v.begin(), v.end()};
}

std::unique_ptr<Transformer> load_f32(Backend& backend, const std::string& path) {
  LoadedModel loaded = load_weights(backend, ModelFile(path), DType::F32);
  const std::int64_t positions = std::min<std::int64_t>(loaded.config.max_position, 1024);
  return std::make_unique<Transformer>(backend, loaded.config, std::move(loaded.weights),
                                       DType::F32, positions);
}

// Logits (n,V) of a text at the given positions.
std::vector<double> logits_at(Transformer& model, const std::vector<std::int32_t>& ids,
                              const std::vector<std::int32_t>& positions) {
  TokenBatch batch = make_prompt(model.backend(), ids, 0);
  return to_host_f64(model.logits(batch, to_device(model.backend(), Tag::Workspace, positions)));
}

// Mean loss over the T - 1 predicted tokens.
double mean_loss(Transformer& model, const std::vector<std::int32_t>& ids) {
  Row row;
  row.ids = ids;
  row.supervised.assign(ids.size(), 1);
  return evaluate(model, std::span(&row, 1), 1024).loss;
}

void check_tiny(const std::string& device, const std::string& path, const std::string& reference) {
  CAPTURE(device);
  CAPTURE(path);
  std::unique_ptr<Backend> backend = open_device(device);
  std::unique_ptr<Transformer> model = load_f32(*backend, kModels + path);
  SafetensorsFile file(kModels + reference + ".reference.safetensors");
  std::vector<double> want = numbers(file, "logits");
  double largest = 0;
  for (double v : want) largest = std::max(largest, std::abs(v));
  check_close(logits_at(*model, integers(file, "ids"), integers(file, "positions")), want, 0,
              {kLogits * largest}, path + " on " + device);
  CHECK(mean_loss(*model, integers(file, "ids")) ==
        doctest::Approx(numbers(file, "nll")[0]).epsilon(1e-5));
  if (!file.has("greedy")) return;
  // With a KV cache, across the window's edge.
  std::vector<std::int32_t> ids = integers(file, "ids");
  ids.resize(70);
  SamplingSettings settings;
  settings.max_tokens = 32;
  CHECK(numbers(file, "greedy_margin")[0] > 2 * kLogits * largest);
  CHECK(generate(*model, ids, settings).ids == integers(file, "greedy"));
}

void check_smollm2(const std::string& device, const std::string& path) {
  std::unique_ptr<Backend> backend = open_device(device);
  std::unique_ptr<Transformer> model = load_f32(*backend, path);
  const std::int64_t V = model->config().vocab_size;
  SafetensorsFile file(kModels + "smollm2.reference.safetensors");
  double worst = 0;
  int texts = 0;
  for (; file.has(concat("ids.", texts)); ++texts) {
    auto key = [&](const char* name) { return concat(name, ".", texts); };
    std::vector<std::int32_t> ids = integers(file, key("ids"));
    std::vector<std::int32_t> positions = integers(file, key("positions"));
    std::vector<double> logits = logits_at(*model, ids, positions);
    std::vector<double> want = numbers(file, key("logits")),
                        top_ids = numbers(file, key("top_ids")),
                        top = numbers(file, key("top_logits")),
                        largest = numbers(file, key("max_abs"));
    const std::size_t n = positions.size(), strided = want.size() / n, tops = top.size() / n;
    for (std::size_t p = 0; p < n; ++p) {
      const double* row = logits.data() + p * static_cast<std::size_t>(V);
      for (std::size_t j = 0; j < strided; ++j)
        worst = std::max(worst, std::abs(row[j * 193] - want[p * strided + j]) / largest[p]);
      for (std::size_t j = 0; j < tops; ++j)
        worst = std::max(worst, std::abs(row[static_cast<std::size_t>(top_ids[p * tops + j])] -
                                         top[p * tops + j]) /
                                    largest[p]);
    }
    CHECK(mean_loss(*model, ids) == doctest::Approx(numbers(file, key("nll"))[0]).epsilon(1e-4));
  }
  MESSAGE(device << ": " << texts << " texts, largest logit difference " << worst
                 << " of the largest logit");
  CHECK(texts == 20);
  CHECK(worst <= kLogits);
  for (int i = 0; file.has(concat("greedy.", i)); ++i) {
    SamplingSettings settings;
    settings.max_tokens = 64;
    Generation g = generate(*model, integers(file, concat("ids.", i)), settings);
    CHECK(g.ids == integers(file, concat("greedy.", i)));
  }
}

}  // namespace

TEST_CASE("tiny models of every kind: logits and loss as transformers has them") {
  for (const std::string& device :
       n_gpus() ? std::vector<std::string>{"cpu", "cuda:0"} : std::vector<std::string>{"cpu"}) {
    for (const char* name : {"tied_gqa", "mqa", "biases", "llama3_rope", "mistral_linear", "qwen2"})
      check_tiny(device, name, name);
    check_tiny(device, "tied_gqa.bf16.gguf", "tied_gqa");
    check_tiny(device, "biases.f16.gguf", "biases");
    check_tiny(device, "llama3_rope.bf16.gguf", "llama3_rope");
    check_tiny(device, "qwen2.f32.gguf", "qwen2");
  }
}

TEST_CASE("every family: logits, loss and greedy tokens with a KV cache as transformers has them") {
  for (const std::string& device :
       n_gpus() ? std::vector<std::string>{"cpu", "cuda:0"} : std::vector<std::string>{"cpu"}) {
    for (const char* name : {"mistral_window", "qwen2_window", "qwen3", "qwen3_odd", "gemma3",
                             "gemma3_odd", "gpt2", "gpt2_odd"})
      check_tiny(device, name, name);
    for (const char* name : {"qwen3", "gemma3", "gpt2"})
      check_tiny(device, std::string(name) + ".bf16.gguf", name);
  }
}

TEST_CASE("a model with learned positions refuses longer sequences") {
  std::unique_ptr<Backend> backend = open_device("cpu");
  LoadedModel loaded = load_weights(*backend, ModelFile(kModels + "gpt2"), DType::F32);
  CHECK_THROWS_AS(Transformer(*backend, loaded.config, std::move(loaded.weights), DType::F32, 321),
                  UsageError);
}

TEST_CASE("SmolLM2 as GGUF on the CPU: logits of 20 texts and 64 greedy tokens") {
  if (smollm2_path().empty()) LK_SKIP("no SmolLM2 model file");
  check_smollm2("cpu", smollm2_path());
}

TEST_CASE("SmolLM2 as GGUF on the GPU: logits of 20 texts and 64 greedy tokens") {
  if (smollm2_path().empty()) LK_SKIP("no SmolLM2 model file");
  if (n_gpus() == 0) LK_SKIP("no GPU");
  check_smollm2("cuda:0", smollm2_path());
}

// The same weights written by transformers as a Hugging Face folder (golden/make_model_golden.py
// smollm2).
TEST_CASE("SmolLM2 as a Hugging Face folder") {
  const char* folder = std::getenv("LORIKEET_SMOLLM2_FOLDER");
  if (!folder) LK_SKIP("LORIKEET_SMOLLM2_FOLDER names no folder");
  check_smollm2("cpu", folder);
  if (n_gpus()) check_smollm2("cuda:0", folder);
}

// A layer rounds the values that it passes on about 14 times (two norms, q, k, v, their angles, the
// scores, o, gate, up, their product, down, two sums; more norms in Qwen3 and Gemma), the head
// twice. Each rounding moves a value by up to 2^-8 of its size, independently of the others, so
// their number enters by its square root if nothing amplifies them. A rounding's mean square is a
// sixth of the bound's square, which leaves a factor of 2.4 for amplification.
TEST_CASE("BF16 stays near F32: logits and loss of every family") {
  for (const std::string& device :
       n_gpus() ? std::vector<std::string>{"cpu", "cuda:0"} : std::vector<std::string>{"cpu"})
    for (const std::string name : {"tied_gqa", "mistral_window", "qwen2", "qwen2_window", "qwen3",
                                   "qwen3_odd", "gemma3", "gemma3_odd", "gpt2", "gpt2_odd"}) {
      CAPTURE(device);
      CAPTURE(name);
      SafetensorsFile file(kModels + name + ".reference.safetensors");
      std::unique_ptr<Backend> backend = open_device(device);
      LoadedModel loaded = load_weights(*backend, ModelFile(kModels + name), DType::BF16);
      const ModelConfig& c = loaded.config;
      const int roundings = 14 + 2 * c.qk_norm + 2 * c.sandwich_norms;
      const double bound = 0x1p-8 * std::sqrt(roundings * static_cast<double>(c.n_layers) + 2);
      Transformer model(*backend, loaded.config, std::move(loaded.weights), DType::BF16, 310);
      const std::vector<double> want = numbers(file, "logits"),
                                got = logits_at(model, integers(file, "ids"),
                                                integers(file, "positions"));
      REQUIRE(got.size() == want.size());
      double error = 0, size = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
      }
      const double relative = std::sqrt(error / size),
                   loss = mean_loss(model, integers(file, "ids")) / numbers(file, "nll")[0] - 1;
      MESSAGE(name << " on " << device << ": logits differ by " << relative << " (bound " << bound
                   << "), the loss by " << loss);
      CHECK(relative <= bound);
      CHECK(std::abs(loss) <= 0.01);  // errors of many tokens, of either sign
    }
}
