// Adapter files: written as PEFT reads them, and read strictly. The A-cases are hostile or foreign
// adapters: each must end in an error that names file and key, never in an adapter that silently
// does nothing.
#include <filesystem>
#include <fstream>

#include "cpu/cpu_backend.h"
#include "io/durable.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "scratch_folder.h"
#include "tensor_file.h"
#include "tiny_model.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

struct Saved {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::unique_ptr<Transformer> model = tiny_transformer(*backend, DType::F32);
  Adapter adapter;
  ScratchFolder scratch;
  stdfs::path folder = scratch.path();
  explicit Saved(std::vector<std::string> targets = {"q_proj", "v_proj"})
      : adapter(*model, tiny_lora(std::move(targets))) {
    randomize_b(adapter, 4);
    save_adapter(folder, adapter, "tiny", "fingerprint");
  }
  Json config() const { return read_json(folder / "adapter_config.json"); }
  void set_config(const Json& j) const {
    write_file_durably(folder / "adapter_config.json", j.dump());
  }
  std::vector<SafetensorsEntry> tensors() const {
    SafetensorsFile file(folder / "adapter_model.safetensors");
    std::vector<SafetensorsEntry> all;
    for (const std::string& name : file.names())
      all.push_back({name, file.shape(name), read_all(file, name)});
    return all;
  }
  void set_tensors(const std::vector<SafetensorsEntry>& t) const {
    write_safetensors(folder / "adapter_model.safetensors", t, {{"format", "pt"}});
  }
  // Opens the folder and loads it into a fresh model.
  void load(bool allow_untrained = false) const {
    auto fresh = tiny_transformer(*backend, DType::F32);
    AdapterFile file = open_adapter(folder);
    attach_adapter(*fresh, file, file.config, allow_untrained);
  }
};

}  // namespace

TEST_CASE("an adapter survives the round trip bit for bit, rank and alpha unequal") {
  Saved s({"q_proj", "down_proj"});
  auto fresh = tiny_transformer(*s.backend, DType::F32);
  AdapterFile file = open_adapter(s.folder);
  CHECK(file.config.shape.rank == 4);
  CHECK(file.config.shape.alpha == 8);
  CHECK(file.target_modules == std::vector<std::string>{"down_proj", "q_proj"});
  CHECK(file.base.fingerprint == "fingerprint");
  std::unique_ptr<Adapter> attached = attach_adapter(*fresh, file, file.config, false);
  Adapter& loaded = *attached;
  REQUIRE(loaded.layers().size() == s.adapter.layers().size());
  for (std::size_t i = 0; i < loaded.parameters().size(); ++i) {
    CHECK(loaded.parameters()[i]->name() == s.adapter.parameters()[i]->name());
    CHECK(to_host<float>(loaded.parameters()[i]->value()) ==
          to_host<float>(s.adapter.parameters()[i]->value()));
  }
  Json c = s.config();
  CHECK(c["peft_type"] == "LORA");
  CHECK(c["lora_alpha"] == 8);
  CHECK(c["target_modules"] == Json({"down_proj", "q_proj"}));
}

TEST_CASE("rsLoRA's scale is alpha over the root of the rank") {
  Saved s;
  Json c = s.config();
  c["use_rslora"] = true;
  s.set_config(c);
  CHECK(open_adapter(s.folder).config.shape.scale() == doctest::Approx(8.0 / 2.0));
}

TEST_CASE("configurations that change the mathematics are refused by key") {
  Saved s;
  const Json good = s.config();
  struct Case {
    const char* key;
    Json value;
  };
  const Case cases[] = {
      {"use_dora", true},
      {"rank_pattern", {{"q_proj", 2}}},
      {"modules_to_save", {"lm_head"}},
      {"layers_to_transform", {7}},
      {"bias", "all"},
      {"lora_bias", true},
      {"trainable_token_indices", {1}},
      {"target_parameters", {"x"}},
      {"peft_type", "IA3"},
      {"r", 0},
      {"r", -3},
      {"r", "8"},
      {"r", 8.5},
      {"r", 16},
      {"lora_alpha", 0},
      {"lora_alpha", "8"},
      {"lora_dropout", 1.5},
      {"target_modules", {1, 2}},
  };
  for (const Case& c : cases) {
    Json bad = good;
    bad[c.key] = c.value;
    s.set_config(bad);
    CAPTURE(c.key);
    CHECK_THROWS_AS(s.load(), InputError);
    try {
      s.load();
    } catch (const InputError& e) {
      CHECK(std::string(e.what()).find("adapter_") != std::string::npos);
    }
  }
  Json missing = good;
  missing.erase("peft_type");
  s.set_config(missing);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("peft_type"), InputError);
}

TEST_CASE("weights that do not fit are refused, each with its tensor's name") {
  Saved s;
  const auto good = s.tensors();
  auto expect = [&](std::vector<SafetensorsEntry> t, const char* part) {
    s.set_tensors(t);
    CHECK_THROWS_WITH_AS(s.load(), doctest::Contains(part), InputError);
  };
  auto with = [&](auto change) {
    auto t = good;
    change(t);
    return t;
  };
  expect(with([](auto& t) { t.pop_back(); }), "lora_A but no lora_B");
  expect(with([](auto& t) { t.erase(t.begin()); }), "lora_B but no lora_A");
  expect(with([](auto& t) { t[0].name = "_orig_mod." + t[0].name; }), "_orig_mod");
  expect(with([](auto& t) {
           for (auto& e : t)
             e.name.replace(e.name.find("model.layers"), 12, "language_model.layers");
         }),
         "language_model");
  expect(with([](auto& t) {  // A and B swapped
           for (std::size_t i = 0; i + 1 < t.size(); i += 2) std::swap(t[i].name, t[i + 1].name);
         }),
         "shape");
  expect(with([](auto& t) {
           t[0].shape = {4, 12};
           t[0].values.resize(48);
         }),
         "shape");
  expect(with([](auto& t) {
           for (auto& e : t)
             if (e.name.find("lora_B") != std::string::npos)
               std::fill(e.values.begin(), e.values.end(), 0.0f);
         }),
         "never trained");
  expect(with([](auto& t) {  // a layer that this model does not have
           for (auto& e : t)
             if (auto at = e.name.find("layers.1"); at != std::string::npos)
               e.name.replace(at, 8, "layers.7");
         }),
         "layers.7");
  // Modules that the model has, but that nothing adapts.
  const Json config = s.config();
  Json more = config;
  more["target_modules"] = {"lm_head", "norm"};
  s.set_config(more);
  for (const char* module : {"lm_head", "model.norm"})
    expect(with([&](auto& t) {
             for (auto& e : t) {
               const std::size_t at = e.name.find("model.layers"), end = e.name.find(".lora_");
               e.name.replace(at, end - at, module);
             }
             t.resize(2);
           }),
           concat("'", module, "' of this model can't have an adapter here").c_str());
  s.set_config(config);
  s.set_tensors({});
  CHECK_THROWS_AS(s.load(), InputError);
}

TEST_CASE("a NaN inside, a pickle, a stub of a file: refused") {
  Saved s;
  std::string path = s.folder / "adapter_model.safetensors";
  std::string bytes = read_file(path, 1 << 20);
  for (int i = 0; i < 4; ++i) bytes[bytes.size() - 1 - static_cast<std::size_t>(i)] = '\xff';
  write_file_durably(path, bytes);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("non-finite"), InputError);
  write_file_durably(path, bytes.substr(0, 443));
  CHECK_THROWS_AS(s.load(), InputError);
  stdfs::remove(path);
  write_file_durably(s.folder / "adapter_model.bin", "pickle");
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("pickle"), InputError);
}

TEST_CASE("a non-finite adapter is never written") {
  Saved s;
  s.backend->fill(s.adapter.layers()[0]->a().value(), std::nan(""));
  CHECK_THROWS_AS(save_adapter(s.folder, s.adapter, "tiny", ""), NonFiniteError);
  CHECK_NOTHROW(s.load());  // the old one is intact
}

namespace {

// One adapter for all tests below: q and v of two layers, rank 4 and alpha 8, with exceptions.
LoraConfig with_exceptions() {
  LoraConfig config = tiny_lora({"q_proj", "v_proj"});
  config.exceptions = {{"model.layers.0.self_attn.v_proj", {2, 8}},
                       {"model.layers.1.self_attn.v_proj", {2, 8}},
                       {"model.layers.1.self_attn.q_proj", {4, 32}}};
  return config;
}

std::vector<float> logits_of(Transformer& model) {
  const std::vector<std::int32_t> ids = {3, 14, 15, 9, 26, 5, 35, 8, 58};
  return to_host<float>(model.logits(make_prompt(model.backend(), ids, 0)));
}

// Logits of a fresh tiny model with the adapter in `folder` on it.
std::vector<float> logits_with(const std::string& folder) {
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  const AdapterFile file = open_adapter(folder);
  auto adapter = attach_adapter(*model, file, file.config, false);
  return logits_of(*model);
}

}  // namespace

TEST_CASE("ranks and alphas of single modules survive the round trip in PEFT's patterns") {
  ScratchFolder scratch;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  Adapter adapter(*model, with_exceptions());
  randomize_b(adapter, 4);
  save_adapter(scratch.path(), adapter, "tiny", "");
  const Json config = read_json(scratch.file("adapter_config.json"));
  CHECK(config["r"] == 4);
  CHECK(config["lora_alpha"] == 8);
  CHECK(config["rank_pattern"] == Json({{"v_proj", 2}}));  // shared by all of that name
  CHECK(config["alpha_pattern"] == Json({{"model.layers.1.self_attn.q_proj", 32}}));
  CHECK(config["use_rslora"] == false);
  const AdapterFile file = open_adapter(scratch.path());
  CHECK(file.config.exceptions == with_exceptions().exceptions);
  CHECK(logits_with(scratch.path()) == logits_of(*model));
}

TEST_CASE("rsLoRA is kept in the file, with each module's own rank under the root") {
  ScratchFolder scratch;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  LoraConfig config = with_exceptions();
  config.shape.rslora = true;
  Adapter adapter(*model, config);
  CHECK(adapter.layers()[0]->shape().scale() == 8.0 / 2.0);
  CHECK(adapter.layers()[1]->shape().scale() == doctest::Approx(8.0 / std::sqrt(2.0)));
  randomize_b(adapter, 4);
  save_adapter(scratch.path(), adapter, "tiny", "");
  CHECK(read_json(scratch.file("adapter_config.json"))["use_rslora"] == true);
  CHECK(logits_with(scratch.path()) == logits_of(*model));
}

// A factor of 8 on B is exact, as alpha's is.
TEST_CASE("an alpha of its own does what the same factor on B does") {
  Saved s;
  Json config = s.config();
  config["alpha_pattern"] = {{"v_proj", 64}};
  s.set_config(config);
  const std::vector<float> by_alpha = logits_with(s.folder);
  config.erase("alpha_pattern");
  s.set_config(config);
  CHECK(logits_with(s.folder) != by_alpha);
  std::vector<SafetensorsEntry> tensors = s.tensors();
  for (SafetensorsEntry& t : tensors)
    if (t.name.find("v_proj.lora_B") != t.name.npos)
      for (float& v : t.values) v *= 8;
  s.set_tensors(tensors);
  CHECK(logits_with(s.folder) == by_alpha);
}

TEST_CASE("matrices of modules that the config does not select are left out, as in PEFT") {
  Saved s;
  const Json good = s.config();
  auto drop = [&](const char* part) {
    std::vector<SafetensorsEntry> kept;
    for (const SafetensorsEntry& t : s.tensors())
      if (t.name.find(part) == t.name.npos) kept.push_back(t);
    ScratchFolder other;
    write_safetensors(other.file("adapter_model.safetensors"), kept, {{"format", "pt"}});
    write_file_durably(other.file("adapter_config.json"), good.dump());
    return logits_with(other.path());
  };
  auto with = [&](const char* key, const Json& value) {
    Json config = good;
    config[key] = value;
    s.set_config(config);
    return logits_with(s.folder);
  };
  const std::vector<float> no_layer0 = drop("layers.0."), no_v = drop("v_proj");
  CHECK(no_layer0 != no_v);
  CHECK(with("layers_to_transform", {1}) == no_layer0);
  CHECK(with("exclude_modules", {"v_proj"}) == no_v);
  CHECK(with("target_modules", R"(model\.layers\.\d+\.self_attn\.q_proj)") == no_v);
  CHECK(open_adapter(s.folder).unselected.size() == 2);
  s.set_config(good);
  CHECK(open_adapter(s.folder).unselected.empty());
  Json none = good;
  none["target_modules"] = {"k_proj"};
  s.set_config(none);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("target_modules"), InputError);
}

TEST_CASE("modules of which only one of the adapter's files knows are named") {
  Saved s;
  auto warnings = [&] { return disagreements(open_adapter(s.folder), s.model->config()); };
  CHECK(warnings().empty());
  const Json good = s.config();
  Json config = good;
  config["target_modules"] = {"q_proj", "up_proj", "lm_head", "no_such_proj"};
  s.set_config(config);
  REQUIRE(warnings().size() == 2);
  CHECK(warnings()[0].find("v_proj") != std::string::npos);
  CHECK(warnings()[1].find("up_proj") != std::string::npos);
  for (const char* all : {"all-linear", "ALL-LINEAR"}) {
    config["target_modules"] = all;
    s.set_config(config);
    REQUIRE(warnings().size() == 1);
    CHECK(warnings()[0].find("is the file whole?") != std::string::npos);
  }
  // Without target_modules PEFT's defaults count, and what they leave out is told.
  std::vector<SafetensorsEntry> more = s.tensors();
  for (const SafetensorsEntry& t : s.tensors())
    if (const std::size_t at = t.name.find("q_proj"); at != t.name.npos) {
      more.push_back(t);
      more.back().name.replace(at, 1, "o");
    }
  const std::vector<SafetensorsEntry> own = s.tensors();
  s.set_tensors(more);
  for (const bool null : {true, false}) {
    config = good;
    config.erase("target_modules");
    if (null) config["target_modules"] = nullptr;
    s.set_config(config);
    REQUIRE(warnings().size() == 1);
    for (const char* part : {"adapter_config.json: target_modules is not given", "o_proj"})
      CHECK(warnings()[0].find(part) != std::string::npos);
    CHECK(open_adapter(s.folder).config.targets.size() == 4);
  }
  s.set_tensors(own);
  s.set_config(good);
  std::vector<SafetensorsEntry> cut;
  for (const SafetensorsEntry& t : s.tensors())
    if (t.name.find("layers.1.self_attn.v_proj") == t.name.npos) cut.push_back(t);
  s.set_tensors(cut);
  REQUIRE(warnings().size() == 1);
  CHECK(warnings()[0].find("lacks 1 of the modules") != std::string::npos);
  CHECK(warnings()[0].find("layers.1.self_attn.v_proj") != std::string::npos);
}

TEST_CASE("a scale that float32 does not hold is refused by its key") {
  Saved s;
  const Json good = s.config();
  auto with = [&](const Json& change) {
    Json config = good;
    config.update(change);
    s.set_config(config);
    return open_adapter(s.folder);
  };
  for (const Json& change : {Json{{"lora_alpha", 1e300}}, Json{{"lora_alpha", 1e-60}},
                             Json{{"alpha_pattern", {{"v_proj", 1e200}}}}})
    CHECK_THROWS_WITH_AS(with(change), doctest::Contains("alpha"), InputError);
  CHECK_NOTHROW(with({{"lora_alpha", 3e38}}));
}

TEST_CASE("a rank above the matrix's width is read, used and written again") {
  ScratchFolder scratch;
  auto backend = make_cpu_backend();
  auto model = tiny_transformer(*backend, DType::F32);
  LoraConfig config = tiny_lora({"v_proj"});
  config.shape = {40, 40, 0};  // v_proj is (16, 24)
  CHECK_THROWS_AS(Adapter(*model, config), UsageError);
  config.wide_ranks = true;
  Adapter adapter(*model, config);
  randomize_b(adapter, 4);
  save_adapter(scratch.path(), adapter, "tiny", "");
  CHECK(logits_with(scratch.path()) == logits_of(*model));
}

TEST_CASE("an embedding or head in the file must be the base's own") {
  Saved s;
  const auto good = s.tensors();
  auto with_weight = [&](const std::string& name, const Weight& weight, float change) {
    SafetensorsEntry entry{"base_model.model." + name, weight.shape(),
                           to_host<float>(weight.values())};
    entry.values.back() += change;
    auto all = good;
    all.push_back(entry);
    s.set_tensors(all);
  };
  const ModelWeights& w = s.model->weights();
  with_weight("lm_head.weight", w.head, 0);
  CHECK_NOTHROW(s.load());
  with_weight("model.embed_tokens.weight", w.embedding, 0);
  CHECK_NOTHROW(s.load());
  Json config = s.config();
  config["modules_to_save"] = {"embed_tokens"};
  s.set_config(config);
  CHECK_NOTHROW(s.load());
  config["modules_to_save"] = {"lm_head"};
  s.set_config(config);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("modules_to_save: lm_head"), InputError);
  config["modules_to_save"] = nullptr;
  s.set_config(config);
  with_weight("lm_head.weight", w.head, 0.5f);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("lm_head.weight"), InputError);
  with_weight("model.norm.weight", w.final_norm, 0);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("model.norm.weight"), InputError);
  auto resized = good;
  resized.push_back({"base_model.model.lm_head.weight", {3, 24}, std::vector<float>(72)});
  s.set_tensors(resized);
  CHECK_THROWS_WITH_AS(s.load(), doctest::Contains("has shape"), InputError);
}
