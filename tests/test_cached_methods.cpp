// A step of generation computes a block by a path of its own (nn/block_cached.cpp): every method, alone and
// with others, must change it as it changes the block that trains.
#include "cpu/cpu_backend_impl.h"
#include "harness.h"
#include "nn/generate.h"
#include "run/methods.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;

namespace {

struct Trained {
  std::string what;
  MethodConfig config;
};

std::vector<Trained> all_methods() {
  std::vector<Trained> all;
  const auto add = [&](const std::string& what, std::vector<std::string> names, auto&& set) {
    MethodConfig c;
    c.names = std::move(names);
    c.lora = tiny_lora();
    c.bottleneck = BottleneckConfig::of_kind("pfeiffer", 4);
    c.prefix.virtual_tokens = 3;
    c.llama_adapter.length = 3;
    c.llama_adapter.layers = 1;
    set(c);
    all.push_back({what, std::move(c)});
  };
  const auto as_it_is = [](MethodConfig&) {};
  const auto dora = [](MethodConfig& c) { c.lora.shape.dora = true; };
  add("LoRA", {"lora"}, as_it_is);
  add("DoRA", {"lora"}, dora);
  for (const char* kind : {"pfeiffer", "houlsby", "parallel"})
    add(kind, {"bottleneck"},
        [&](MethodConfig& c) { c.bottleneck = BottleneckConfig::of_kind(kind, 4); });
  for (const char* name : {"bitfit", "ia3", "prefix", "llama-adapter"}) {
    add(name, {name}, as_it_is);
    if (std::string(name) != "ia3" && std::string(name) != "bitfit")
      add(concat("DoRA and ", name), {"lora", name}, dora);
  }
  add("DoRA and bottleneck", {"lora", "bottleneck"}, dora);
  return all;
}

// The largest difference between the logits of each token with a cache and without.
void check_cached(const std::string& family, const Trained& trained, std::int64_t& run) {
  CAPTURE(family);
  CAPTURE(trained.what);
  auto backend = make_cpu_backend(CpuMode::Reference);
  auto model = tiny_transformer(*backend, DType::F64, 7, family);
  std::unique_ptr<Method> method;
  try {
    method = make_method(*model, trained.config);
  } catch (const UsageError&) {
    return;  // the family has no place for it
  }
  unsigned seed = 40;
  for (Parameter* p : method->parameters()) {
    backend->add(p->value(), p->value(),
                 random_tensor(*backend, p->value().dtype(), p->value().shape(), seed++, 0.2));
    p->refresh();
  }
  const std::vector<Row> rows = random_rows({14}, 9);
  const std::vector<double> whole =
      to_host_f64(model->logits(make_batch(*backend, pointers(rows))));
  const std::size_t V = whole.size() / 14;
  KvCache cache(*backend, model->config(), DType::F64, 14);
  std::size_t at = 0;
  for (std::size_t n : {7, 3, 1, 1, 2}) {
    const auto& ids = rows[0].ids;
    const SequencePart part{0,
                            {ids.begin() + static_cast<std::ptrdiff_t>(at),
                             ids.begin() + static_cast<std::ptrdiff_t>(at + n)},
                            -1};
    const Tensor logits = model->next_logits(make_cached_batch(cache, std::span(&part, 1)), cache);
    advance_cache(cache, std::span(&part, 1));
    at += n;
    const auto last = whole.begin() + static_cast<std::ptrdiff_t>((at - 1) * V);
    check_close(to_host_f64(logits), {last, last + static_cast<std::ptrdiff_t>(V)}, 1e-11, {1e-11},
                "cached logits");
  }
  ++run;
}

}  // namespace

TEST_CASE(
    "with a KV cache every method computes the logits of the whole sequence, F64, in every "
    "family") {
  for (const Trained& trained : all_methods()) {
    std::int64_t run = 0;
    for (const std::string& family : kFamilies) check_cached(family, trained, run);
    CHECK_MESSAGE(run > 0, trained.what, " ran in no family");
  }
}
