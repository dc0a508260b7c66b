// bench_decode: prefill and decoding of a named shape, a config.json or a model, with random prompts,
// through the Generator that `generate` uses.
//
// Limits are measured in the same process: a step of decoding reads every weight's stored bytes once,
// and each sequence's keys and values, at the speed of a copy; a prefill runs its frozen products alone. One
// JSON line per batch size goes to stdout, a summary to stderr.
#include <algorithm>
#include <cstdio>
#include <random>

#include "../tools/program.h"
#include "cuda/open_device.h"
#include "io/ggml_blocks.h"
#include "io/ggml_encode.h"
#include "io/json.h"
#include "modelfile/config.h"
#include "modelfile/load.h"
#include "modelfile/named_shapes.h"
#include "modelfile/quantise.h"
#include "nn/generate.h"
#include "random_base.h"
#include "roofline.h"
#include "run/inference.h"

namespace {

using namespace lk;

struct Settings {
  std::string shape = "smollm2-135m", config, model, device = "auto", dtype = "auto",
              base_precision = "auto", blocks;
  std::string name() const { return !model.empty() ? model : !config.empty() ? config : shape; }
  std::int64_t prompt = 512, tokens = 128;
  std::vector<std::int64_t> batches{1, 16};
  bool no_record = false;
};

// Seconds that the frozen products alone take for n tokens: forward, blocks only.
double products_seconds(Backend& backend, const ModelWeights& weights, DType dtype,
                        std::int64_t n) {
  struct Product {
    const Weight* w;
    Tensor x, y;
  };
  std::vector<Product> products;
  for (const LayerWeights& l : weights.layers)
    for (const Projection& p : l.projections) {
      const Weight* w = &p.weight;
      if (!w->defined()) continue;
      const std::int64_t N = w->shape()[0], K = w->shape()[1];
      // One input and one output per shape keep the memory small.
      auto same = std::find_if(products.begin(), products.end(),
                               [&](const Product& done) { return done.w->shape() == w->shape(); });
      if (same != products.end())
        products.push_back({w, same->x, same->y});
      else
        products.push_back({w, bench::random_tensor(backend, dtype, {n, K}, 1),
                            backend.empty(Tag::Workspace, dtype, {n, N})});
    }
  return bench::median_seconds(backend, 3, [&] {
    for (const Product& p : products) backend.linear_forward(p.y, p.x, *p.w);
  });
}

// Bytes of the matrices that a step multiplies with.
double matrix_bytes(const ModelWeights& weights) {
  double bytes = stored_bytes(weights.head);
  for (const LayerWeights& l : weights.layers)
    for (const Projection& p : l.projections)
      if (p.weight.defined()) bytes += stored_bytes(p.weight);
  return bytes;
}

void measure(Transformer& model, const bench::Roofs& roofs, std::int64_t batch, const Settings& s) {
  const ModelConfig& config = model.config();
  std::mt19937_64 rng(1);
  std::vector<GenerationRequest> requests(static_cast<std::size_t>(batch));
  for (GenerationRequest& r : requests) {
    for (std::int64_t i = 0; i < s.prompt; ++i)
      r.prompt.push_back(
          static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(config.vocab_size)));
    r.sampling.max_tokens = s.tokens;
  }
  Generator generator(model, nullptr, {.max_batch = batch, .record = !s.no_record});
  generator.run(requests);  // to warm up
  double prefill = 0, decode = 0;
  for (const Generation& g : generator.run(requests)) {
    prefill = std::max(prefill, g.prefill_seconds);
    decode = std::max(decode, g.decode_seconds);
  }
  const double n = static_cast<double>(batch), steps = static_cast<double>(s.tokens - 1);
  const double element = static_cast<double>(dtype_size(model.compute_dtype()));
  const double keys = static_cast<double>(s.prompt) + steps / 2;
  const double bytes =
      matrix_bytes(model.weights()) +
      element * n * keys * 2 * static_cast<double>(config.n_layers * config.kv_size());
  const double of_bandwidth = 100 * bytes / roofs.bytes_per_second / (decode / steps);
  const double products =
      products_seconds(model.backend(), model.weights(), model.compute_dtype(), batch * s.prompt);
  const OrderedJson line = {
      {"shape", s.name()},
      {"device", model.backend().description()},
      {"dtype", dtype_name(model.compute_dtype())},
      {"base_precision", s.blocks.empty() ? s.base_precision : s.blocks},
      {"batch", batch},
      {"prompt_tokens", s.prompt},
      {"new_tokens", s.tokens},
      {"prefill_tokens_per_second", n * static_cast<double>(s.prompt) / prefill},
      {"prefill_percent_of_products", 100 * products / prefill},
      {"decode_tokens_per_second", n * steps / decode},
      {"decode_ms_a_step", 1e3 * decode / steps},
      {"decode_percent_of_copy_bandwidth", of_bandwidth},
      {"copy_gigabytes_per_second", 1e-9 * roofs.bytes_per_second}};
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
  std::fprintf(stderr,
               "batch %3lld: prefill %9.0f tok/s (%.1f %% of its products), decode %8.1f tok/s, "
               "%.3f ms a step (%.1f %% of copy bandwidth)\n",
               static_cast<long long>(batch), n * static_cast<double>(s.prompt) / prefill,
               100 * products / prefill, n * steps / decode, 1e3 * decode / steps, of_bandwidth);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Prefill and decoding speed with random weights.", "bench_decode");
  Settings s;
  const auto& whole = program::whole_number();
  auto* shape = app.add_option("--shape", s.shape, "named shape")->capture_default_str();
  auto* by_config = app.add_option("--config", s.config, "a model's config.json instead");
  by_config->excludes(shape);
  app.add_option("--model", s.model, "a model to load instead: .gguf file or Hugging Face folder")
      ->excludes(shape)
      ->excludes(by_config);
  app.add_option("--base-precision", s.base_precision, program::kBasePrecisionHelp)
      ->capture_default_str();
  app.add_option("--blocks", s.blocks, "hold projections in blocks of a ggml type: Q4_K")
      ->excludes("--base-precision")
      ->excludes("--model");
  app.add_option("--prompt", s.prompt, "tokens of each prompt")->check(whole);
  app.add_option("--tokens", s.tokens, "new tokens, at least 2")->check(whole);
  app.add_option("--batches", s.batches, "sequences at a time")->check(whole);
  app.add_flag("--no-record", s.no_record, "submit each step anew");
  app.add_option("--device", s.device, "auto, cpu, cuda:0")->capture_default_str();
  app.add_option("--dtype", s.dtype, "auto, f32, bf16")->capture_default_str();
  return program::run(app, argc, argv, [&] {
    if (s.prompt < 1 || s.tokens < 2) throw UsageError("--prompt from 1 on, --tokens from 2 on");
    std::unique_ptr<ModelFile> file;
    if (!s.model.empty()) file = std::make_unique<ModelFile>(s.model);
    const ModelConfig config = file               ? file->config()
                               : s.config.empty() ? named_shape(s.shape)
                                                  : config_from_json(read_json(s.config), s.config);
    const GgmlEncoder* type = s.blocks.empty() ? nullptr : find_ggml_encoder(s.blocks);
    if (!s.blocks.empty() && !(type && type->quantised))
      throw UsageError(concat("--blocks ", s.blocks, ": one of Q4_0 to Q8_0, Q2_K to Q6_K"));
    const GgmlType* blocks = type ? find_ggml_type(type->id) : nullptr;
    const BaseStorage storage{blocks ? BasePrecision::Nf4 : parse_base_precision(s.base_precision)};
    auto backend = open_device(s.device);
    const DType dtype = parse_compute_dtype(s.dtype, *backend);
    const bench::Roofs roofs = bench::measure_roofs(*backend, dtype);
    ModelWeights weights =
        file ? load_weights(*backend, *file, dtype, {.storage = storage}).weights
             : bench::random_base(*backend, config, dtype, storage, nullptr, blocks);
    Transformer model(*backend, config, std::move(weights), dtype, s.prompt + s.tokens);
    for (std::int64_t batch : s.batches) {
      if (batch < 1) throw UsageError("--batches: from 1 on");
      measure(model, roofs, batch, s);
    }
    return 0;
  });
}
