// Adapter files: written as PEFT reads them, read strictly. The A-cases of hostile or foreign
// adapters: each must end in an error that names file and key, never in an adapter that quietly
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
  CHECK(file.base_fingerprint == "fingerprint");
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
      {"alpha_pattern", {{"q_proj", 2}}},
      {"modules_to_save", {"lm_head"}},
      {"layers_to_transform", {0}},
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
