// merge into folders quantised to nf4, fp4 and fp8: would catch codes or scales that are not those of
// --base-precision, a matrix quantised that must stay dense, a tensor that its package reads otherwise
// (golden/check_quantised_folder.py), and programs that can't go on with what was written.
#include <cmath>
#include <set>

#include "family_models.h"
#include "io/json.h"
#include "io/paths.h"
#include "lora/made_from.h"
#include "lora/merge.h"
#include "modelfile/family_files.h"
#include "modelfile/quantise.h"
#include "run_program.h"
#include "tensor_file.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";
const std::string kTiny = kGolden + "peft/tiny", kAdapter = kGolden + "peft/all_linear.after";
const std::vector<std::string> kTypes = {"nf4", "fp4", "fp8"};

MergeListener quiet;

MergeSettings settings(const std::string& model, const std::string& adapter, const std::string& out,
                       const std::string& type) {
  MergeSettings s;
  s.model = model;
  if (!adapter.empty()) s.adapters = {{adapter, 1}};
  s.out = out;
  s.type = type;
  return s;
}

std::vector<float> rows_of(const ModelFile& file, const WeightSlot& slot) {
  std::vector<float> values(static_cast<std::size_t>(slot.shape.numel()));
  file.read_rows(slot, 0, slot.shape.rows(), values.data());
  return values;
}

// What --base-precision makes of the slot's matrix in `dense`.
HostPlanes held(const ModelFile& dense, const WeightSlot& slot, const std::string& type) {
  const auto encoding = type == "nf4"   ? Encoding::Nf4
                        : type == "fp4" ? Encoding::Fp4
                                        : Encoding::Fp8;
  return quantise(encoding, slot.shape, dense.block_rows(slot),
                  [&](std::int64_t begin, std::int64_t end, float* to) {
                    dense.read_rows(slot, begin, end, to);
                  });
}

}  // namespace

TEST_CASE("every family: the planes of --base-precision on the merged values, the rest as it was") {
  for (const std::string& name : kFamilyModels) {
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), adapter = random_adapter(scratch, base);
    merge(settings(base, adapter, scratch.file("f32"), "f32"), quiet);
    const ModelFile exact(scratch.file("f32"));
    for (const std::string& type : kTypes) {
      CAPTURE(name);
      CAPTURE(type);
      const MergeSettings s = settings(base, adapter, scratch.file(type), type);
      if (type == "fp8" && files_of(exact.config()).conv1d) {
        check_throws<UsageError>("GPT-2", {"`type` fp8", "gpt2", "nf4"}, [&] { merge(s, quiet); });
        continue;
      }
      if (type == "fp8" && name == "gemma3_odd") {  // a q_proj of 30 x 21
        check_throws<UsageError>("odd", {"`type` fp8", "no multiple of 4"},
                                 [&] { merge(s, quiet); });
        continue;
      }
      const MergeResult r = merge(s, quiet);
      CHECK(r.type == type);
      CHECK(r.quantised);
      CHECK(r.all.noise() > 0);
      const ModelFile written(s.out);
      REQUIRE(written.slots().size() == exact.slots().size());
      const std::vector<HeldFormat> formats = held_formats(exact, {parse_base_precision(type), {}});
      for (std::size_t i = 0; i < exact.slots().size(); ++i) {
        const WeightSlot& slot = exact.slots()[i];
        CAPTURE(slot.name);
        REQUIRE(written.quantised_format(slot).has_value() == formats[i].has_value());
        if (!formats[i]) {
          CHECK(rows_of(written, slot) == rows_of(exact, slot));
          continue;
        }
        const HostPlanes want = held(exact, slot, type), got = written.read_planes(slot);
        CHECK(got.planes == want.planes);
        CHECK(got.offset == want.offset);
        CHECK(got.format.rounded == want.format.rounded);
      }
    }
  }
}

TEST_CASE("bitsandbytes and compressed-tensors dequantise what was written to what we read") {
  const SafetensorsFile golden(kGolden + "quantised/written.safetensors");
  for (const std::string& type : kTypes) {
    ScratchFolder scratch;
    merge(settings(kTiny, kAdapter, scratch.file("out"), type), quiet);
    const ModelFile written(scratch.file("out"));
    int compared = 0;
    for (const WeightSlot& slot : written.slots()) {
      if (!golden.has(type + "." + slot.name)) continue;
      CAPTURE(slot.name);
      CHECK(rows_of(written, slot) == read_all(golden, type + "." + slot.name));
      ++compared;
    }
    CHECK(compared == 2);
  }
}

TEST_CASE("what rounding takes away is measured and told, and config.json says what was written") {
  ScratchFolder scratch;
  for (const std::string& type : kTypes) {
    CAPTURE(type);
    const MergeSettings s = settings(kTiny, kAdapter, scratch.file(type), type);
    const MergeResult r = merge(s, quiet);
    REQUIRE(!r.warnings.empty());
    CHECK(r.warnings.back().starts_with(type + " rounds every weight"));
    // Measured anew: <S - W, u> / <u, u> over all matrices.
    merge(settings(kTiny, kAdapter, scratch.file(type + ".f32"), "f32"), quiet);
    const ModelFile base(kTiny), sum(scratch.file(type + ".f32")), stored(s.out);
    double overlap = 0, update = 0;
    for (const WeightSlot& slot : base.slots()) {
      const std::vector<float> w = rows_of(base, slot), all = rows_of(sum, slot),
                               kept = rows_of(stored, slot);
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double u = static_cast<double>(all[i]) - w[i];
        overlap += u * (static_cast<double>(kept[i]) - w[i]), update += u * u;
      }
    }
    CHECK(r.all.kept() == doctest::Approx(overlap / update).epsilon(1e-4));
    const Json config = read_json(s.out + "/config.json");
    CHECK(config["dtype"] == "bfloat16");  // what stays dense
    const Json& q = config["quantization_config"];
    if (type == "fp8") {
      CHECK(q["quant_method"] == "compressed-tensors");
      CHECK(q["format"] == "float-quantized");
      CHECK(q["config_groups"]["group_0"]["weights"]["strategy"] == "channel");
    } else {
      CHECK(q["quant_method"] == "bitsandbytes");
      CHECK(q["bnb_4bit_quant_type"] == type);
      CHECK(q["bnb_4bit_use_double_quant"] == true);
      CHECK(q["bnb_4bit_compute_dtype"] == "bfloat16");
    }
  }
  // Written in full again, it is quantised no more.
  merge(settings(scratch.file("nf4"), "", scratch.file("dense"), ""), quiet);
  CHECK(!read_json(scratch.file("dense") + "/config.json").contains("quantization_config"));
}

TEST_CASE("in shards, all of a matrix is in one file, and tensors of F32 lie at multiples of 4") {
  ScratchFolder scratch;
  const std::string base = runnable_model(scratch, "qwen3_odd");
  for (const std::string& type : kTypes) {
    CAPTURE(type);
    MergeSettings s = settings(base, "", scratch.file(type), type);
    s.shard_bytes = 20'000;
    merge(s, quiet);
    MergeSettings one = settings(base, "", scratch.file(type + ".one"), type);
    merge(one, quiet);
    const ModelFile many(s.out), single(one.out);
    for (const WeightSlot& slot : many.slots()) CHECK(rows_of(many, slot) == rows_of(single, slot));
    const Json map = read_json(s.out + "/model.safetensors.index.json")["weight_map"];
    std::set<std::string> files;
    for (const auto& [name, file] : map.items()) {
      files.insert(file);
      if (const std::size_t at = name.find(".weight"); at != std::string::npos)
        CHECK(map[name.substr(0, at + 7)] == file);
    }
    CHECK(files.size() >= 3);
    const std::string bytes = slurp(one.out + "/model.safetensors");
    std::uint64_t length = 0;
    std::copy_n(bytes.data(), sizeof length, reinterpret_cast<char*>(&length));
    CHECK(length % 8 == 0);
    const Json header = parse_json(bytes.substr(8, length), "header");
    for (const auto& [name, tensor] : header.items())
      if (name != "__metadata__" && tensor["dtype"] == "F32")
        CHECK(tensor["data_offsets"][0].get<std::uint64_t>() % 4 == 0);
  }
}

TEST_CASE("what such folders can't be, or can't be made of, is refused by name") {
  ScratchFolder scratch;
  auto refused = [&](auto error, const MergeSettings& s, std::initializer_list<std::string> parts) {
    check_throws<decltype(error)>(*parts.begin(), parts, [&] { merge(s, quiet); });
  };
  const std::string gguf = scratch.file("out.gguf"), out = scratch.file("out");
  refused(UsageError(""), settings(kTiny, kAdapter, gguf, "nf4"),
          {"`type` nf4", "GGUF", "q4_0 is"});
  refused(UsageError(""), settings(kTiny, kAdapter, gguf, "fp8"), {"`type` fp8", "q8_0 is"});
  refused(UsageError(""), settings(kTiny, kAdapter, out, "q4_0"),
          {"`type` q4_0", "nf4 is nearest"});
  refused(UsageError(""), settings(kTiny, kAdapter, out, "int8"), {"`type` int8", "fp4 or fp8"});
  MergeSettings s = settings(kTiny, kAdapter, out, "NF4");
  s.adapters[0].weight = 1e39;
  refused(InputError(""), s, {"tensor model.layers.0.", "is not finite"});
  CHECK(scratch.names().empty());
  s.adapters[0].weight = 1;
  merge(s, quiet);
  s.model = out;
  s.out = scratch.file("base");
  check_throws<InputError>("unmerge", {"is stored as nf4", "q4_1", "can be checked"},
                           [&] { unmerge(s, kTiny, quiet); });
}

// Converters store norms of BF16 in F32.
TEST_CASE(
    "an F32 model is what a file of its rounded norms was made from, and one further away is not") {
  ScratchFolder scratch;
  const std::string quantised = scratch.file("q8.gguf"), dense = scratch.file("dense"),
                    weights = dense + "/model.safetensors";
  MergeSettings s;
  s.model = kTiny, s.type = "q8_0", s.out = quantised;
  merge(s, quiet);
  s.type = "f32", s.out = dense;
  merge(s, quiet);
  const std::string bytes = slurp(weights);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  const Json header = parse_json(bytes.substr(8, length), weights);
  for (const float factor : {1.0f, 1.001f, 1.05f}) {
    std::string moved = bytes;
    for (const auto& [name, tensor] : header.items())
      if (name.find("norm") != name.npos)
        for (auto at = tensor["data_offsets"][0].get<std::uint64_t>();
             at < tensor["data_offsets"][1].get<std::uint64_t>(); at += sizeof(float)) {
          float x = 0;
          std::memcpy(&x, bytes.data() + 8 + length + at, sizeof x);
          x *= factor;
          std::memcpy(moved.data() + 8 + length + at, &x, sizeof x);
        }
    std::ofstream(weights, std::ios::binary) << moved;
    const auto check = [&] { check_made_from(ModelFile(dense), ModelFile(quantised)); };
    if (factor < 1.01f)
      CHECK_NOTHROW(check());
    else
      check_throws<InputError>("norms", {"norm", "not the model that was quantised"}, check);
  }
}

TEST_CASE("finetune, evaluate and generate go on with the folder") {
  ScratchFolder scratch;
  const std::string data = kGolden + "peft/rows.jsonl", cpu = " --device cpu --dtype f32";
  for (const std::string& type : kTypes) {
    CAPTURE(type);
    const std::string folder = scratch.file(type);
    auto run = [&](const std::string& arguments, int status) {
      const ProgramResult r = run_program(arguments);
      CHECK_MESSAGE(r.status == status, arguments, "\n", r.out);
      return r.out;
    };
    run("merge --model " + kTiny + " --adapter " + kAdapter + " --type " + type + " --out " +
            folder,
        0);
    const std::string trained =
        run("finetune --model " + folder + " --data " + data + " --out " +
                scratch.file(type + ".run") + " --steps 2 --rank 2 --batch 2 --seq-len 64" + cpu,
            0);
    CHECK(trained.find(type + " x 14") != std::string::npos);
    run("generate --model " + folder + " --prompt 'a' --max-tokens 4" + cpu, 0);
    run("merge --model " + folder + " --adapter " + scratch.file(type + ".run") + " --out " +
            scratch.file(type + ".again") + " --type " + type,
        0);
    // Onto the dense model: as if the adapter were its own.
    const std::string own = " --adapter " + scratch.file(type + ".run"),
                      onto = scratch.file(type + ".onto"), other = scratch.file(type + ".other");
    run("merge --model " + folder + own + " --onto " + kTiny + " --type f32 --out " + onto, 0);
    run("merge --model " + kTiny + own + " --other-base --type f32 --out " + other, 0);
    CHECK(slurp(onto + "/model.safetensors") == slurp(other + "/model.safetensors"));
    CHECK(
        run("merge --model " + kTiny + own + " --onto " + folder + " --out " + scratch.file("none"),
            2)
            .find("--onto " + folder + ": is quantised itself") != std::string::npos);
    run("merge --model " + kTiny + own + " --onto " + kTiny + " --out " + scratch.file("none"), 3);
    // Another model of the same shapes: the adapter's merged into the dense one, a hundred times.
    if (const std::string far = scratch.file("far"); !is_folder(far))
      run("merge --model " + kTiny + " --adapter " + kAdapter + "=1000 --no-verify --out " + far,
          0);
    CHECK(run("merge --model " + folder + own + " --onto " + scratch.file("far") + " --out " +
                  scratch.file("none"),
              3)
              .find("this is not the model that was quantised") != std::string::npos);
    run("merge --model " + folder + own + " --onto " + scratch.file("far") +
            " --other-base --out " + scratch.file(type + ".far"),
        0);
    for (const std::string flag : {"--base-precision nf4", "--keep-dense down_proj"})
      CHECK(run("merge --model " + folder + own + " --onto " + kTiny + " " + flag + " --out " +
                    scratch.file("none"),
                2)
                .find("with --onto " + kTiny + " has no effect") != std::string::npos);
    run("merge --model " + kTiny + " --type " + type + " --out " + folder + ".gguf", 2);
    run("merge --unmerge --model " + folder + " --base " + kTiny + " --adapter " + kAdapter +
            " --out " + scratch.file("base"),
        3);
  }
  CHECK(run_program("merge --model " + kTiny + " --type q4_0 --out " + scratch.file("q")).status ==
        2);
}

TEST_CASE("a model with other norms or biases is not what was quantised, and each is by itself") {
  const std::string models = kGolden + "models/";
  for (const char* other : {"qwen3", "biases", "gpt2"})
    CHECK_THROWS_WITH_AS(check_made_from(ModelFile(models + other), ModelFile(kTiny)),
                         doctest::Contains("has other norms or biases than"), InputError);
  for (const char* same : {"qwen3", "qwen2", "gemma3", "gpt2"})
    CHECK_NOTHROW(check_made_from(ModelFile(models + same), ModelFile(models + same)));
  for (const std::string both : {"qwen3", "llama3_rope", "gpt2", "gemma3"})
    CHECK_NOTHROW(
        check_made_from(ModelFile(models + both), ModelFile(models + both + ".bf16.gguf")));
}

TEST_CASE(
    "what a config or a dense tensor says of another model is named, and is not merged into") {
  const std::string models = kGolden + "models/", name = "tied_gqa";
  const ModelFile quantised(models + name + ".q8_0.gguf");
  const ScratchFolder scratch;
  const auto reader = open_safetensors_model(models + name);
  // The folder with a key of its config and a tensor's values changed.
  auto refused = [&](const char* key, const Json& value, const std::string& tensor,
                     const std::function<void(std::vector<float>&)>& change, const char* part) {
    std::vector<SafetensorsEntry> tensors;
    for (const std::string& one : reader->names()) {
      tensors.push_back({one, reader->shape(one), read_all(*reader, one)});
      if (one == tensor) change(tensors.back().values);
    }
    write_safetensors(scratch.file("model.safetensors"), tensors, {{"format", "pt"}});
    Json config = read_json(models + name + "/config.json");
    if (!value.is_null()) config[key] = value;
    scratch.write("config.json", config.dump());
    std::string said;
    try {
      check_made_from(ModelFile(scratch.path()), quantised);
    } catch (const InputError& e) {
      said = e.what();
    }
    CHECK_MESSAGE((part[0] == 0 ? said.empty() : said.find(part) != said.npos), said);
  };
  auto by_config = [&](const char* key, const Json& value, const char* part) {
    refused(key, value, "", {}, part);
  };
  by_config("", nullptr, "");
  const Json config = read_json(models + name + "/config.json");
  by_config("rms_norm_eps", 0.1, ": rms_norm_eps is 0.1, in ");
  by_config("rms_norm_eps", config["rms_norm_eps"].get<double>() * (1 + 1e-7), "");  // F32's
  by_config("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}},
            ": rope_theta is 500000, in ");
  by_config(
      "rope_parameters",
      {{"rope_type", "linear"}, {"rope_theta", quantised.config().rope_theta}, {"factor", 2.0}},
      ": rope_scaling gives other rotary angles");

  auto by_tensor = [&](const std::string& tensor,
                       const std::function<void(std::vector<float>&)>& change,
                       const char* part) { refused("", nullptr, tensor, change, part); };
  by_tensor(
      "model.norm.weight", [](auto& v) { v.back() *= 5; }, ": model.norm.weight has ");
  by_tensor(
      "model.layers.0.input_layernorm.weight", [](auto& v) { v[1] *= 1 + 0x1p-6f; },
      ": model.layers.0.input_layernorm.weight has ");
  // The quantised model's are numbers of BF16, so that is all it says of them.
  by_tensor(
      "model.layers.0.input_layernorm.weight", [](auto& v) { v[1] *= 1 + 0x1p-20f; }, "");
  by_tensor(
      "model.embed_tokens.weight", [](auto& v) { std::reverse(v.begin(), v.begin() + 64 * 4); },
      ": model.embed_tokens.weight ");

  // Two roundings of one number: BF16 and F32.
  by_tensor(
      "model.norm.weight", [](auto&) {}, "");
  const ModelFile bf16(models + "llama3_rope.bf16.gguf"), f32(models + "llama3_rope");
  CHECK_NOTHROW(check_made_from(f32, bf16));
}
