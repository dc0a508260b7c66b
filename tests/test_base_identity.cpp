// Which base an adapter is of, and as what it was held: what its files say, which models are taken for
// that base, and in which numbers generate, evaluate and merge hold it.
#include <filesystem>

#include "family_models.h"
#include "heard_run.h"
#include "hostile.h"
#include "io/durable.h"
#include "io/json.h"
#include "lora/merge.h"
#include "modelfile/base_identity.h"
#include "modelfile/held_rows.h"
#include "modelfile/origin.h"
#include "nn/evaluation.h"
#include "run/inference.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kTiny = std::string(LK_TEST_DATA) + "/golden/peft/tiny";

struct Heard : MergeListener {
  std::string said;
  void message(const std::string& text) override { said += text + "\n"; }
};

// merge without an adapter, or with one; returns the folder.
std::string made(const ScratchFolder& scratch, const std::string& model, const std::string& name,
                 const std::string& type = "", const std::string& adapter = "",
                 BasePrecision precision = BasePrecision::Auto) {
  MergeSettings s;
  s.model = model, s.out = scratch.file(name), s.type = type;
  if (!adapter.empty()) s.adapters = {{adapter, 1}};
  s.storage.precision = precision;
  Heard heard;
  merge(s, heard);
  return s.out;
}

std::vector<std::string> warnings(const std::string& model, const std::string& adapter,
                                  const std::string& precision = "auto") {
  InferenceSettings s;
  s.model = model, s.adapter = adapter, s.device = "cpu", s.dtype = "f32";
  s.base_precision = precision;
  return open_inference(s).warnings;
}

// A run on `base`, held as `precision`; returns its folder.
std::string trained(const ScratchFolder& scratch, const std::string& base, BasePrecision precision,
                    std::vector<std::string> keep_dense, const std::string& name) {
  FinetuneSettings s;
  s.model = base, s.out = scratch.file(name), s.device = "cpu", s.dtype = "f32";
  s.data = scratch.file("rows.jsonl");
  write_file_durably(s.data, "{\"prompt\":\"one \",\"completion\":\"two three\"}\n");
  s.seq_len = 64, s.rank = 4, s.steps = 3, s.lr = 1e-2, s.base_precision = precision;
  s.keep_dense = std::move(keep_dense);
  std::string said;
  hear_run(s, -1, said);
  return s.out;
}

// The loss of a text under the model with the adapter, and what was said of the base.
double loss(InferenceModel m) {
  Row row;
  for (std::int32_t id = 3; id < 40; ++id) row.ids.push_back(id), row.supervised.push_back(1);
  return evaluate(*m.model, std::vector{row}, 64).loss;
}
InferenceModel opened(const std::string& model, const std::string& adapter,
                      const std::string& precision = "auto", std::vector<std::string> keep = {}) {
  InferenceSettings s;
  s.model = model, s.adapter = adapter, s.device = "cpu", s.dtype = "f32";
  s.base_precision = precision, s.keep_dense = std::move(keep);
  return open_inference(s);
}

}  // namespace

TEST_CASE("what names the base stands in the weights' metadata, where PEFT warns of nothing") {
  ScratchFolder scratch;
  const std::string folder = random_adapter(scratch, kTiny);
  const Json config = read_json(folder + "/adapter_config.json");
  for (const auto& [key, value] : config.items()) CHECK(!key.starts_with("lorikeet"));
  CHECK(open_adapter(folder).base.fingerprint == model_fingerprint(kTiny));
  // Folders of earlier versions have it in the config.
  Json old = config;
  old[kBaseFingerprint] = "0123";
  write_file_durably(folder + "/adapter_config.json", old.dump());
  CHECK(open_adapter(folder).base.fingerprint == "0123");

  BaseIdentity base{"name", "abc"};
  set_precision(base, {BasePrecision::Dense, {"down_proj"}});
  CHECK(base.precision.empty());  // its file's own numbers
  set_precision(base, {BasePrecision::Fp8, {"down_proj", "layers.0"}});
  BaseIdentity back;
  read_base_metadata(back, base_metadata(base), "w");
  CHECK(back.fingerprint == "abc");
  CHECK(back.precision == "fp8");
  CHECK(back.keep_dense == base.keep_dense);
  check_throws<InputError>("unknown", {"w: __metadata__: lorikeet_base_precision", "int3"}, [&] {
    read_base_metadata(back, {{"lorikeet_base_precision", "int3"}}, "w");
  });
}

TEST_CASE("a folder that merge wrote without an adapter is taken for its base") {
  for (const bool gguf : {false, true}) {
    CAPTURE(gguf);
    ScratchFolder scratch;
    const std::string base = gguf ? made(scratch, kTiny, "tiny.gguf", "q8_0") : kTiny,
                      adapter = random_adapter(scratch, base);
    const std::string same = made(scratch, base, "same"), again = made(scratch, same, "again");
    CHECK(warnings(base, adapter).empty());
    CHECK(warnings(same, adapter).empty());
    CHECK(warnings(again, adapter).empty());
    CHECK(loss(opened(same, adapter)) == loss(opened(base, adapter)));
    const auto rounded = warnings(made(scratch, base, "rounded", gguf ? "bf16" : "f16"), adapter);
    REQUIRE(rounded.size() == 1);
    CHECK(rounded[0].find(gguf ? "rounded to \"BF16\"" : "rounded to \"F16\"") !=
          std::string::npos);
    // merge itself asks the same.
    const std::string merged = made(scratch, same, "merged", "", adapter);
    check_throws<InputError>("merged in", {adapter, merged, "merged into"},
                             [&] { warnings(merged, adapter); });
    CHECK_THROWS_AS(made(scratch, merged, "twice", "", adapter), InputError);
    // Other weights in the place of those that the record is of.
    stdfs::copy_file(merged + "/model.safetensors", same + "/model.safetensors",
                     stdfs::copy_options::overwrite_existing);
    check_throws<InputError>("other weights", {"another base"}, [&] { warnings(same, adapter); });
    write_file_durably(same + "/lorikeet.json", "{}");
    check_throws<InputError>("no record", {"lorikeet.json", "sha256"},
                             [&] { warnings(same, adapter); });
  }
}

TEST_CASE("an adapter of a base held as nf4 is used and merged on it so, or with a warning") {
  ScratchFolder scratch;
  for (BasePrecision precision : {BasePrecision::Nf4, BasePrecision::Fp8}) {
    const std::string name = base_precision_name(precision);
    const std::string adapter = trained(scratch, kTiny, precision, {"down_proj"}, name);
    const Json record = read_json(adapter + "/run.json");
    CHECK(record["base"]["precision"] == name);
    CHECK(slurp(adapter + "/README.md").find("| base held as | " + name + ", but `down_proj` |") !=
          std::string::npos);
    CHECK(record["base"]["keep_dense"] == Json{"down_proj"});
    InferenceModel m = opened(kTiny, adapter);
    CHECK(m.warnings.empty());
    CHECK(m.remark.find("held as " + name + " (`keep_dense` down_proj)") != std::string::npos);
    const double as_trained = loss(std::move(m));
    CHECK(loss(opened(kTiny, adapter, name, {"down_proj"})) == as_trained);
    InferenceModel dense = opened(kTiny, adapter, "dense");
    REQUIRE(dense.warnings.size() == 1);
    CHECK(dense.warnings[0].find("`base_precision` " + name) != std::string::npos);
    CHECK(loss(std::move(dense)) != as_trained);
    CHECK(warnings(kTiny, adapter, name).size() == 1);  // down_proj is quantised too

    // merge: the numbers of the base as it was held, and the update.
    const std::string merged = made(scratch, kTiny, name + "-merged", "f32", adapter);
    CHECK(loss(opened(merged, "")) == doctest::Approx(as_trained).epsilon(1e-5));
    const std::string other =
        made(scratch, kTiny, name + "-dense", "f32", adapter, BasePrecision::Dense);
    CHECK(std::abs(loss(opened(other, "")) - as_trained) > 1e-5);
    // A plain folder of the base as it was held is that base.
    MergeSettings s;
    s.model = kTiny, s.out = scratch.file(name + "-held"), s.type = "f32",
    s.storage = {precision, {"down_proj"}};
    Heard heard;
    merge(s, heard);
    InferenceModel held = opened(s.out, adapter);
    CHECK(held.warnings.empty());
    CHECK(held.remark.empty());
    CHECK(loss(std::move(held)) == doctest::Approx(as_trained).epsilon(1e-6));
    const std::string plain = random_adapter(scratch, kTiny, name + "-plain");
    CHECK(warnings(s.out, plain).size() >= 1);
  }
  // Of several adapters that disagree none decides.
  const std::string plain = random_adapter(scratch, kTiny, "plain");
  InferenceSettings s;
  s.model = kTiny, s.device = "cpu", s.dtype = "f32";
  s.named_adapters = {"a=" + plain, "b=" + scratch.file("nf4")};
  const InferenceModel both = open_inference(s);
  CHECK(both.remark.empty());
  REQUIRE(both.warnings.size() == 1);
  CHECK(both.warnings[0].starts_with(scratch.file("nf4")));
  check_throws<UsageError>("both", {"`weights` quantised", "nf4"}, [&] {
    InferenceSettings two;
    two.model = kTiny, two.device = "cpu", two.weights = "quantised", two.base_precision = "nf4";
    open_inference(two);
  });
}

TEST_CASE("merge says how much a dequantised base will take, and how to have less") {
  ScratchFolder scratch;
  MergeSettings s;
  s.model = made(scratch, kTiny, "tiny.gguf", "q8_0"), s.out = scratch.file("a");
  Heard heard;
  const MergeResult r = merge(s, heard);
  CHECK(heard.said.find(
            "F32, 1 MiB, which holds the dequantised values exactly (`type` f16 or bf16") !=
        std::string::npos);
  CHECK(r.type == "F32");
  Heard chosen;
  s.type = "bf16", s.out = scratch.file("b");
  merge(s, chosen);
  CHECK(chosen.said.find("`type`") == std::string::npos);
}
