#include "run/choices.h"

#include <algorithm>

#include "lora/rank_patterns.h"
#include "run/defaults.h"

namespace lk {
namespace {

constexpr std::int64_t kVirtualTokens = 20;  // as in PEFT's examples

void choose_lora(FinetuneSettings& s, const ModelConfig& model, LoraConfig& lora) {
  if (!s.rank) s.rank = default_rank(model);
  lora.shape = {*s.rank, s.alpha.value_or(static_cast<double>(*s.rank)),
                static_cast<float>(s.dropout), s.rslora, s.dora};
  lora.targets =
      s.targets.empty() ? std::vector<std::string>{"all-linear"} : expand_targets(s.targets, model);
  lora.seed = s.seed;
  lora.layers = s.layers;
  lora.init = s.init;
  apply_patterns(lora, model, s.rank_pattern, s.alpha_pattern);
}

}  // namespace

MethodConfig choose_methods(FinetuneSettings& s, const ModelConfig& model) {
  MethodConfig methods;
  methods.names = s.methods;
  const std::int64_t n = s.virtual_tokens.value_or(kVirtualTokens);
  methods.prompt = {n, {}, s.seed};
  methods.prefix = {n, s.prefix_hidden, s.seed};
  methods.llama_adapter = {n, s.adapter_layers, s.seed};
  methods.bottleneck = BottleneckConfig::of_kind(s.bottleneck_kind, s.bottleneck);
  methods.bottleneck.dropout = static_cast<float>(s.dropout);
  methods.bottleneck.seed = s.seed;
  methods.ia3.targets = methods.bitfit.targets = expand_targets(s.targets, model);
  if (methods.has("lora") && s.init_adapter.empty()) choose_lora(s, model, methods.lora);
  return methods;
}

std::int64_t ChosenPrecision::count(bool (*is)(const QuantisedFormat&)) const {
  return std::count_if(formats.begin(), formats.end(),
                       [&](const HeldFormat& f) { return f && (!is || is(*f)); });
}

ChosenPrecision choose_precision(const FinetuneSettings& s, const MethodConfig& methods,
                                 const ModelConfig& model, const ModelFile* file, Backend& backend,
                                 DType dtype) {
  ChosenPrecision held{{s.base_precision, s.keep_dense}, {}};
  BaseStorage& storage = held.storage;
  storage.streamed = s.streamed;
  const bool changes = methods.has("lora") && changes_base(methods.lora.init);
  const bool needs_dense = changes || replaces_base(methods);
  if (needs_dense && s.base_precision == BasePrecision::Auto)
    storage.precision = BasePrecision::Dense;
  require(!needs_dense || storage.precision == BasePrecision::Dense, "`base_precision` ",
          base_precision_name(s.base_precision), ": ",
          changes ? "`init` changes" : "`method` full trains",
          " the base's own numbers, which takes `base_precision` dense");
  require(!needs_dense || !s.streamed, s.streamed.setting(), ": ",
          changes ? "`init` changes" : "`method` full trains",
          " the base's own numbers, which are never copied back to where they wait");
  auto hold = [&] {
    held.formats = file ? held_formats(*file, storage) : held_formats(model, storage);
  };
  hold();
  if (held.count([](const QuantisedFormat& f) { return f.encoding == Encoding::Fp8; }) > 0) {
    storage.fp8_products = uses_fp8_products(s.fp8_products, model, backend, dtype);
    hold();
  } else {
    require(s.fp8_products != "on",
            "`fp8_products` on: no matrix of the base is in FP8; it goes with `base_precision` fp8 "
            "or fp8-head, or a model in FP8");
  }
  return held;
}

void check_layers(const FinetuneSettings& s, const ModelConfig& model) {
  const auto fits = [&](std::int64_t layers) {
    return layers <= model.n_layers || layers == StreamedLayers::kAll;
  };
  static_assert(StreamedLayers::kAll == Recompute::kAllLayers);
  const Recompute& r = s.recompute;
  require(fits(r.gate_up) && fits(r.keep_attention) && fits(r.block) && fits(r.offload),
          "`recompute` ", recompute_text(r), ": the model has ", model.n_layers, " layers");
  require(fits(s.streamed.count), s.streamed.setting(), " ", s.streamed.count, ": the model has ",
          model.n_layers, " layers");
}

void choose_seq_len(FinetuneSettings& s, const MethodConfig& methods, const ModelConfig& model) {
  const std::int64_t room = model.max_position - extra_positions(methods);
  require(room >= 2, "`method` ", methods.text(), ": ", extra_positions(methods),
          " virtual tokens leave no room in the model's ", model.max_position, " positions");
  if (!s.seq_len) s.seq_len = std::min(kMostTokens, room);
  require(*s.seq_len <= room, "`seq_len` ", *s.seq_len, ": the model has ", model.max_position,
          " positions",
          room < model.max_position
              ? concat(", ", model.max_position - room, " of them for virtual tokens")
              : "");
}

}  // namespace lk
