// merge, unmerge and the GGUF adapter: the maths against F64, every format read back, and nothing
// left behind by what is refused or interrupted.
#include "io/durable.h"
#include "lora/merge.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "harness.h"
#include "hostile.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/export_gguf.h"
#include "lora/merge_source.h"
#include "modelfile/model_file.h"
#include "modelfile/model_output.h"
#include "split_gguf.h"
#include "tensor_file.h"
#include "text/tokenizer.h"

using namespace lk;
using namespace lk::test;
namespace stdfs = std::filesystem;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/peft";
const std::string kBase = kGolden + "/tiny", kAdapter = kGolden + "/all_linear.after",
                  kSubset = kGolden + "/subset.after";

MergeSettings settings(const std::string& out, const std::string& type = "f32") {
  MergeSettings s;
  s.model = kBase;
  s.adapters = {{kAdapter, 1}};
  s.out = out;
  s.type = type;
  return s;
}

MergeListener quiet;

// A tensor of a model file, all of it, in Hugging Face's order.
std::vector<float> values_of(const ModelFile& model, const std::string& name) {
  for (const WeightSlot& slot : model.slots()) {
    if (slot.name != name) continue;
    std::vector<float> v(static_cast<std::size_t>(slot.shape.numel()));
    model.read_rows(slot, 0, slot.shape.rows(), v.data());
    return v;
  }
  FAIL("no tensor ", name);
  return {};
}

// W + the sum of weight * s * B A, in F64.
std::vector<double> merged_f64(const std::string& module,
                               const std::vector<WeightedAdapter>& adapters) {
  const ModelFile base(kBase);
  std::vector<float> w = values_of(base, module + ".weight");
  std::vector<double> merged(w.begin(), w.end());
  for (const WeightSlot& slot : base.slots()) {
    if (slot.name != module + ".weight") continue;
    for (const WeightedAdapter& adapter : adapters) {
      const AdapterFile file = open_adapter(adapter.folder);
      const auto& targets = file.config.targets;
      if (std::find(targets.begin(), targets.end(), module) == targets.end()) continue;
      const HostFactors f = read_factors(file, module, slot.shape[0], slot.shape[1]);
      for (std::int64_t o = 0; o < f.out; ++o)
        for (std::int64_t i = 0; i < f.in; ++i)
          for (std::int64_t k = 0; k < f.rank; ++k)
            merged[static_cast<std::size_t>(o * f.in + i)] +=
                adapter.weight * f.scale * f.b[static_cast<std::size_t>(o * f.rank + k)] *
                f.a[static_cast<std::size_t>(k * f.in + i)];
    }
  }
  return merged;
}

// Roundoff of F32: R products and R sums, a factor, a sum with W; all terms well below 1.
void check_merged(const std::vector<float>& got, const std::vector<double>& want, double scale) {
  REQUIRE(got.size() == want.size());
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
  CHECK_MESSAGE(worst <= 20 * 0x1p-24 * scale, "largest difference ", worst);
}

// A copy of the adapter with one thing changed.
std::string changed_adapter(const ScratchFolder& scratch, const std::string& key,
                            const Json& value) {
  const std::string folder = scratch.file("adapter");
  stdfs::copy(kAdapter, folder);
  Json config = read_json(folder + "/adapter_config.json");
  config[key] = value;
  write_file_durably(folder + "/adapter_config.json", config.dump());
  return folder;
}

}  // namespace

TEST_CASE("update_rows is the sum of s B A, any rows of it, against F64") {
  const std::int64_t out = 37, in = 53;
  std::vector<HostFactors> factors;
  for (std::int64_t rank : {1, 5}) {
    HostFactors f{rank, in, out, rank == 1 ? -0.7 : 1.3, {}, {}};
    for (double v : random_values(rank * in, 3 + static_cast<unsigned>(rank)))
      f.a.push_back(static_cast<float>(v));
    for (double v : random_values(out * rank, 9 + static_cast<unsigned>(rank)))
      f.b.push_back(static_cast<float>(v));
    factors.push_back(f);
  }
  for (auto [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, out}, {5, 6}, {11, 37}}) {
    std::vector<float> u(static_cast<std::size_t>((end - begin) * in), 99.0f);
    update_rows(factors, begin, end, u);
    for (std::int64_t o = begin; o < end; ++o)
      for (std::int64_t i = 0; i < in; ++i) {
        double want = 0, size = 0;
        for (const HostFactors& f : factors)
          for (std::int64_t k = 0; k < f.rank; ++k) {
            const double term = f.scale * f.b[static_cast<std::size_t>(o * f.rank + k)] *
                                f.a[static_cast<std::size_t>(k * in + i)];
            want += term;
            size += std::abs(term);
          }
        // 6 products, 6 sums, 2 factors rounded and multiplied: under 12 roundings of the size.
        const double got = u[static_cast<std::size_t>((o - begin) * in + i)];
        if (std::abs(got - want) > 12 * 0x1p-24 * size) FAIL_CHECK(o, ",", i, ": ", got, " ", want);
      }
  }
}

TEST_CASE(
    "a folder in F32 is W + s B A, computes what base + adapter computes, and brings its files") {
  ScratchFolder scratch;
  const std::string out = scratch.file("merged");
  const MergeResult r = merge(settings(out), quiet);
  CHECK(r.type == "F32");
  CHECK(r.all.matrices == 14);
  CHECK(r.modules.size() == 7);
  // W' has 2^-24 of its own size; the update is smaller than W, hence the margin.
  CHECK(std::abs(r.all.kept() - 1) < 1e-5);
  CHECK(r.all.noise() < 1e-5);
  CHECK(*r.logit_difference <= 2e-6 * *r.largest_logit);
  CHECK(*r.largest_logit > 0.1);
  const ModelFile merged(out);
  for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj",
                             "model.layers.1.mlp.down_proj"})
    check_merged(values_of(merged, std::string(module) + ".weight"),
                 merged_f64(module, {{kAdapter, 1}}), 1);
  const ModelFile base(kBase);
  for (const char* same : {"model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"})
    CHECK(values_of(merged, same) == values_of(base, same));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    CHECK(slurp(out + "/" + name) == slurp(kBase + "/" + name));
  Json config = read_json(out + "/config.json");
  CHECK(config["dtype"] == "float32");
  config["dtype"] = "bfloat16";
  CHECK(config == read_json(kBase + "/config.json"));
  CHECK(scratch.names().size() == 1);
}

TEST_CASE("a folder's named chat templates go with its tokenizer, and come back") {
  ScratchFolder scratch;
  const std::string base = scratch.file("base"), file = "/additional_chat_templates/tool_use.jinja";
  stdfs::copy(kBase, base);
  stdfs::create_directory(base + "/additional_chat_templates");
  std::ofstream(base + file) << "{{ tools }}";
  std::ofstream(base + "/additional_chat_templates/notes.txt") << "no template";
  MergeSettings s = settings(scratch.file("merged"));
  s.model = base;
  merge(s, quiet);
  CHECK(slurp(s.out + file) == "{{ tools }}");
  CHECK(!stdfs::exists(s.out + "/additional_chat_templates/notes.txt"));
  CHECK(ModelFile(s.out).read_tokenizer()->tool_template() == "{{ tools }}");
  s.model = s.out;
  s.out = scratch.file("again");
  unmerge(s, base, quiet);
  CHECK(slurp(s.out + file) == "{{ tools }}");
}

TEST_CASE("without an adapter the model itself is written in another format") {
  ScratchFolder scratch;
  MergeSettings s = settings(scratch.file("copy"));
  s.adapters.clear();
  s.type = "f32";
  const MergeResult r = merge(s, quiet);
  CHECK(r.all.matrices == 0);
  CHECK(*r.logit_difference == 0);
  CHECK(r.warnings.empty());
  const ModelFile copy(s.out), base(kBase);
  for (const WeightSlot& slot : base.slots())
    CHECK(values_of(copy, slot.name) == values_of(base, slot.name));
}

TEST_CASE("several adapters add up with their weights") {
  ScratchFolder scratch;
  MergeSettings s = settings(scratch.file("merged"));
  s.adapters = {{kAdapter, 0.7}, {kSubset, -1.5}};
  const MergeResult r = merge(s, quiet);
  CHECK(*r.logit_difference <= 2e-6 * *r.largest_logit);
  const ModelFile merged(s.out);
  for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"})
    check_merged(values_of(merged, std::string(module) + ".weight"), merged_f64(module, s.adapters),
                 2);
  MergeSettings other = settings(scratch.file("other"));
  other.adapters = {{kAdapter, 0.7}};
  merge(other, quiet);
  CHECK(values_of(merged, "model.layers.0.self_attn.q_proj.weight") !=
        values_of(ModelFile(other.out), "model.layers.0.self_attn.q_proj.weight"));
}

TEST_CASE(
    "every type of GGUF holds the merged matrix as that type rounds it, q and k in its order") {
  ScratchFolder scratch;
  for (std::string type :
       {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k"}) {
    CAPTURE(type);
    const std::string out = scratch.file(type + ".gguf");
    MergeSettings s = settings(out, type);
    s.other_base = true;  // the adapter names no base, which would be a warning
    const MergeResult r = merge(s, quiet);
    if (type == "f32") CHECK(*r.logit_difference <= 2e-6 * *r.largest_logit);
    CHECK(r.quantised == type.starts_with("q"));
    CHECK(r.warnings.empty() != r.quantised);
    for (const auto& [wide, narrow] :
         {std::pair{"q4_k", "stored as Q5_0, not Q4_K"}, {"q6_k", "stored as Q8_0, not Q6_K"}})
      if (type == wide)
        CHECK(std::any_of(r.warnings.begin(), r.warnings.end(), [&](const std::string& w) {
          return w.find(narrow) != std::string::npos;
        }));
    CHECK(std::abs(r.all.kept() - 1) < 0.2);
    const GgufFile file(out);
    CHECK(file.stored_type("blk.0.attn_norm.weight") == "F32");
    CHECK(file.stored_type("token_embd.weight") == (r.quantised ? "Q8_0" : r.type));
    CHECK(file.get_string("tokenizer.ggml.model") == "gpt2");
    CHECK(file.get_int("general.file_type", 0, 100) == find_ggml_encoder(r.type)->file_type);

    MergeSource source(kBase, {{kAdapter, 1}}, false);
    const ModelFile merged(out);
    for (const WeightSlot& slot : source.base().slots()) {
      if (!slot.linear) continue;
      std::vector<float> want(static_cast<std::size_t>(slot.shape.numel()));
      std::vector<std::uint8_t> unused;
      source.rows(slot, 0, slot.shape.rows(), want);
      CHECK(round_to(*find_ggml_encoder(r.type), want, unused));
      CHECK_MESSAGE(values_of(merged, slot.name) == want, slot.name);
    }
    // As stored, the first head's rows 0 and D/2 of q are neighbours.
    if (type == "f32") {
      std::vector<float> stored(128),
          ours = values_of(merged, "model.layers.0.self_attn.q_proj.weight");
      file.read_rows("blk.0.attn_q.weight", 0, 2, stored.data());
      CHECK(std::equal(stored.begin(), stored.begin() + 64, ours.begin()));
      CHECK(std::equal(stored.begin() + 64, stored.end(), ours.begin() + 8 * 64));
    }
  }
}

TEST_CASE("a folder becomes a GGUF file and a folder again: the same logits and tokens") {
  ScratchFolder scratch;
  merge(settings(scratch.file("a.gguf")), quiet);
  // Nothing is added the second time: a weight of zero.
  MergeSettings s = settings(scratch.file("b"), "");
  s.model = scratch.file("a.gguf");
  s.adapters = {{kAdapter, 0}};
  const MergeResult r = merge(s, quiet);
  CHECK(r.type == "F32");
  CHECK(*r.logit_difference <= 2e-6 * *r.largest_logit);
  const ModelFile from(kBase), to(s.out);
  const std::unique_ptr<Tokenizer> first = from.read_tokenizer(), last = to.read_tokenizer();
  CHECK(from.config().eos_ids == to.config().eos_ids);
  CHECK(from.config().rms_eps == to.config().rms_eps);
  CHECK(first->eos() == last->eos());
  CHECK(first->bos() == last->bos());
  CHECK(first->before_text() == last->before_text());
  for (const char* text :
       {"The food is good.", "<|im_start|>user\nab  12345 \xc3\xa9\xe6\x97\xa5", " \n\t x"})
    CHECK(first->encode(text) == last->encode(text));
}

TEST_CASE("what rounding takes away is measured: half a step of bf16 is lost, f32 keeps it") {
  ScratchFolder scratch;
  // Updates of about 1e-7: far below half a step of bfloat16 for weights of 0.02.
  MergeSettings s = settings(scratch.file("lost"), "");
  s.adapters = {{kAdapter, 1e-6}};
  s.other_base = true;  // the adapter names no base, which would be a warning
  const MergeResult lost = merge(s, quiet);
  CHECK(lost.type == "BF16");  // as the base
  CHECK(lost.all.kept() < 0.2);
  REQUIRE(lost.warnings.size() == 1);
  CHECK(lost.warnings[0].find("survived") != std::string::npos);
  CHECK(read_json(s.out + "/config.json") == read_json(kBase + "/config.json"));
  s.out = scratch.file("f32");
  s.type = "f32";
  const MergeResult whole = merge(s, quiet);
  CHECK(whole.all.kept() > 0.95);
  CHECK(whole.warnings.empty());
}

TEST_CASE("a small limit makes shards with an index, which load as the one file does") {
  ScratchFolder scratch;
  MergeSettings s = settings(scratch.file("sharded"));
  s.shard_bytes = 100'000;
  merge(s, quiet);
  merge(settings(scratch.file("single")), quiet);
  const Json index = read_json(s.out + "/model.safetensors.index.json");
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
  CHECK(files.size() >= 4);
  std::uint64_t total = 0;
  for (const std::string& file : files) {
    CHECK(file.starts_with("model-0000"));
    const SafetensorsFile shard(s.out + "/" + file);
    std::uint64_t bytes = 0;
    for (const std::string& name : shard.names())
      bytes += 4 * static_cast<std::uint64_t>(shard.shape(name).numel());
    CHECK((bytes <= 100'000 || shard.names().size() == 1));
    total += bytes;
  }
  CHECK(index["metadata"]["total_size"] == total);
  const ModelFile a(s.out), b(scratch.file("single"));
  for (const WeightSlot& slot : a.slots())
    CHECK(values_of(a, slot.name) == values_of(b, slot.name));
}

TEST_CASE("what does not fit is refused by name, before anything is written") {
  ScratchFolder scratch;
  auto refused = [&](auto error, MergeSettings s, std::initializer_list<std::string> parts) {
    check_throws<decltype(error)>(*parts.begin(), parts, [&] { merge(s, quiet); });
  };
  const std::string out = scratch.file("out");
  {
    ScratchFolder other;
    MergeSettings s = settings(out);
    s.adapters[0].folder = changed_adapter(other, "lorikeet_base_sha256", "0123");
    refused(InputError(""), s, {"0123", "another base"});
    s.other_base = true;
    s.out = other.file("fine");
    CHECK_NOTHROW(merge(s, quiet));
  }
  {  // an adapter of a model with another shape
    ScratchFolder other;
    stdfs::copy(kAdapter, other.file("a"));
    SafetensorsFile file(kAdapter + "/adapter_model.safetensors");
    std::vector<SafetensorsEntry> wide, elsewhere;
    for (const std::string& name : file.names()) {
      SafetensorsEntry e{name, file.shape(name), read_all(file, name)};
      elsewhere.push_back(e);
      if (std::size_t at = e.name.find("layers.1"); at != std::string::npos)
        elsewhere.back().name.replace(at, 8, "layers.5");
      if (e.name.ends_with("layers.0.mlp.up_proj.lora_A.weight")) {
        e.shape = {e.shape[0], e.shape[1] / 2};
        e.values.resize(e.values.size() / 2);
      }
      wide.push_back(e);
    }
    MergeSettings s = settings(out);
    s.adapters[0].folder = other.file("a");
    write_safetensors(other.file("a/adapter_model.safetensors"), wide, {});
    refused(InputError(""), s, {"up_proj.lora_A", "(8,32)", "(8,64)"});
    write_safetensors(other.file("a/adapter_model.safetensors"), elsewhere, {});
    refused(InputError(""), s, {"layers.5", "no module of"});
  }
  MergeSettings s = settings(out, "q8_0");
  refused(UsageError(""), s, {"q8_0", "folder", "fp8"});
  s = settings(scratch.file("out.gguf"), "iq2_xs");
  refused(UsageError(""), s, {"iq2_xs"});
  s = settings(scratch.write("there", "x"));
  refused(UsageError(""), s, {"there", "exists already"});
  s = settings(out);
  s.adapters[0].weight = 1e30;  // finite, but the sum is none for F16
  s.type = "f16";
  refused(UsageError(""), s,
          {"`type` F16: tensor model.", "too large for it; bf16 and f32 hold it"});
  s.out = scratch.file("out.gguf");
  s.type = "q4_0";
  refused(UsageError(""), s, {"`type` Q4_0: tensor blk.", "bf16 and f32 hold it"});
  s.type = "bf16";
  s.adapters[0].weight = 1e39;
  refused(InputError(""), s, {"tensor model.layers.0.", "is not finite: no type holds it"});
  CHECK(scratch.names() == std::vector<std::string>{"there"});
}

TEST_CASE(
    "a head that a tied model's file repeats is compared, also by what does not read it back") {
  ScratchFolder scratch;
  const std::string model = scratch.file("model");
  stdfs::copy(kBase, model);
  const auto reader = open_safetensors_model(kBase);
  std::vector<SafetensorsEntry> tensors;
  for (const std::string& name : reader->names())
    tensors.push_back({name, reader->shape(name), read_all(*reader, name)});
  for (const SafetensorsEntry& t : tensors)
    if (t.name == "model.embed_tokens.weight") {
      SafetensorsEntry head = t;
      head.name = kFolderHead;
      tensors.push_back(std::move(head));
      break;
    }
  MergeSettings s;
  s.model = model, s.verify = false;
  write_safetensors(model + "/model.safetensors", tensors, {{"format", "pt"}});
  s.out = scratch.file("same");
  CHECK_NOTHROW(merge(s, quiet));
  tensors.back().values.back() += 0.5f;
  write_safetensors(model + "/model.safetensors", tensors, {{"format", "pt"}});
  for (const char* out : {"folder", "file.gguf"}) {
    s.out = scratch.file(out);
    check_throws<InputError>(out, {"lm_head.weight", "tie_word_embeddings"},
                             [&] { merge(s, quiet); });
    CHECK(!stdfs::exists(s.out));
  }
  s.adapters = {{kAdapter, 1}}, s.out = scratch.file("base");
  check_throws<InputError>("unmerge", {"lm_head.weight", "tie_word_embeddings"},
                           [&] { unmerge(s, kBase, quiet); });
}

TEST_CASE(
    "a tied model whose only table is called the head is merged into one with its usual name") {
  ScratchFolder scratch;
  const std::string model = scratch.file("model");
  stdfs::copy(kBase, model);
  std::vector<SafetensorsEntry> tensors;
  {
    const auto reader = open_safetensors_model(kBase);
    for (const std::string& name : reader->names())
      tensors.push_back({name == "model.embed_tokens.weight" ? kFolderHead : name,
                         reader->shape(name), read_all(*reader, name)});
  }
  write_safetensors(model + "/model.safetensors", tensors, {{"format", "pt"}});
  for (const char* out : {"folder", "file.gguf"}) {
    MergeSettings s = settings(scratch.file(out)), usual = settings(scratch.file("usual"));
    s.model = model, s.other_base = true;
    const MergeResult r = merge(s, quiet);
    CHECK(*r.logit_difference <= 2e-6 * *r.largest_logit);
    merge(usual, quiet);
    const ModelFile merged(s.out), want(usual.out);
    CHECK(!merged.reader().has(kFolderHead));
    for (const WeightSlot& slot : want.slots())
      CHECK(values_of(merged, slot.name) == values_of(want, slot.name));
    stdfs::remove_all(usual.out);
    MergeSettings back = settings(scratch.file(concat(out, ".base")));
    back.model = s.out, back.adapters = s.adapters, back.other_base = true;
    unmerge(back, model, quiet);
    CHECK(slurp(back.out + "/model.safetensors") == slurp(model + "/model.safetensors"));
  }
}

TEST_CASE("interrupted at any block, with no room or a full disk, nothing stays") {
  ScratchFolder scratch;
  struct Stop {};
  struct Stopper : MergeListener {
    int left = 0;
    void progress(std::uint64_t, std::uint64_t, const std::string&) override {
      if (left-- == 0) throw Stop{};
    }
  };
  for (const char* name : {"folder", "file.gguf"})
    for (int n : {0, 1, 7, 19}) {
      Stopper stopper;
      stopper.left = n;
      CHECK_THROWS_AS(merge(settings(scratch.file(name)), stopper), Stop);
      CHECK(scratch.names().empty());
    }
  struct Full : Fs {
    bool no_room = false;
    int writes = 0;
    int statvfs(const char* path, struct statvfs* s) override {
      const int r = Fs::statvfs(path, s);
      if (no_room) s->f_bavail = 1;
      return r;
    }
    ssize_t write(int fd, const void* data, std::size_t bytes) override {
      if (!no_room && ++writes > 20) return errno = ENOSPC, -1;
      return Fs::write(fd, data, bytes);
    }
  };
  for (const char* name : {"folder", "file.gguf"})
    for (bool no_room : {true, false}) {
      Full full;
      full.no_room = no_room;
      {
        FsOverride in_use(full);
        CHECK_THROWS_WITH_AS(merge(settings(scratch.file(name)), quiet),
                             doctest::Contains(no_room ? "MiB free" : "No space"), IoError);
      }
      CHECK(scratch.names().empty());
    }
}

TEST_CASE("unmerge gives the base back byte for byte, and refuses what is not its merge") {
  ScratchFolder scratch;
  for (std::string type : {"f32", "bf16"}) {
    MergeSettings s = settings(scratch.file("merged" + type), type);
    merge(s, quiet);
    s.model = s.out;
    s.out = scratch.file("base" + type);
    unmerge(s, kBase, quiet);
    for (const char* name : {"model.safetensors", "config.json", "tokenizer.json"})
      CHECK(slurp(s.out + "/" + name) == slurp(kBase + "/" + name));
  }
  {  // a quantised merge too can be checked
    MergeSettings s = settings(scratch.file("q.gguf"), "q4_1");
    merge(s, quiet);
    s.model = s.out;
    s.out = scratch.file("fromq");
    unmerge(s, kBase, quiet);
    CHECK(slurp(s.out + "/model.safetensors") == slurp(kBase + "/model.safetensors"));
  }
  MergeSettings s = settings(scratch.file("no"));
  s.model = scratch.file("mergedf32");
  s.adapters = {{kSubset, 1}};  // not the one
  check_throws<InputError>("other adapter", {"not their merge", "layers.0"},
                           [&] { unmerge(s, kBase, quiet); });
  s.adapters = {{kAdapter, 1}};
  s.model = kBase;  // not merged at all
  CHECK_THROWS_AS(unmerge(s, kBase, quiet), InputError);
  s.model = scratch.file("mergedf32");
  s.out = scratch.file("no.gguf");
  CHECK_THROWS_AS(unmerge(s, kBase, quiet), UsageError);
  CHECK(!stdfs::exists(scratch.file("no")));
}

TEST_CASE("unmerge gives the parts of a split GGUF base back, into a folder") {
  ScratchFolder scratch;
  MergeSettings s;
  s.model = kBase, s.out = scratch.file("whole.gguf"), s.type = "f32";
  merge(s, quiet);
  const std::string base = split_gguf(s.out, scratch.file("base"));
  s.model = base, s.adapters = {{kAdapter, 1}}, s.other_base = true;
  s.out = scratch.file("merged.gguf");
  merge(s, quiet);
  s.model = s.out;
  s.out = scratch.file("no.gguf");
  check_throws<UsageError>("a file", {"`out`", "no.gguf", "several files", "folder"},
                           [&] { unmerge(s, base, quiet); });
  CHECK(!stdfs::exists(s.out));
  s.out = scratch.file("back");
  unmerge(s, base, quiet);
  for (const char* part : {"base-00001-of-00002.gguf", "base-00002-of-00002.gguf"})
    CHECK(slurp(s.out + "/" + part) == slurp(scratch.file(part)));
  CHECK(std::distance(stdfs::directory_iterator(s.out), {}) == 2);
}

TEST_CASE(
    "a GGUF adapter holds A as it is, B's rows in the base's order, and alpha as scale * rank") {
  ScratchFolder scratch;
  const std::string out = scratch.file("a.gguf");
  const GgufAdapter written = export_gguf_adapter(kBase, kAdapter, out);
  CHECK(written.modules == 14);
  const GgufFile file(out);
  CHECK(file.get_string("general.type") == "adapter");
  CHECK(file.get_string("general.architecture") == "llama");
  CHECK(file.get_string("adapter.type") == "lora");
  CHECK(file.get_float("adapter.lora.alpha") == 16);
  CHECK(file.names().size() == 28);
  const HostFactors q =
      read_factors(open_adapter(kAdapter), "model.layers.1.self_attn.q_proj", 64, 64);
  std::vector<float> a(q.a.size()), b(q.b.size());
  CHECK(file.shape("blk.1.attn_q.weight.lora_a") == Shape{8, 64});
  CHECK(file.shape("blk.1.attn_q.weight.lora_b") == Shape{64, 8});
  file.read_rows("blk.1.attn_q.weight.lora_a", 0, 8, a.data());
  file.read_rows("blk.1.attn_q.weight.lora_b", 0, 64, b.data());
  CHECK(a == q.a);
  for (std::size_t head = 0; head < 4; ++head)  // D = 16
    for (std::size_t i = 0; i < 8; ++i)
      for (std::size_t p = 0; p < 2; ++p)
        for (std::size_t k = 0; k < 8; ++k)
          CHECK(b[(head * 16 + 2 * i + p) * 8 + k] == q.b[(head * 16 + p * 8 + i) * 8 + k]);
  {
    ScratchFolder other;
    const std::string rs = changed_adapter(other, "use_rslora", true);
    export_gguf_adapter(kBase, rs, scratch.file("rs.gguf"));
    CHECK(GgufFile(scratch.file("rs.gguf")).get_float("adapter.lora.alpha") ==
          doctest::Approx(16 * std::sqrt(8.0)));
  }
  CHECK_THROWS_AS(export_gguf_adapter(kBase, kAdapter, out), UsageError);  // it is there
  CHECK(scratch.names().size() == 2);
}

TEST_CASE("a GGUF adapter says alphas of single modules by factors on their B") {
  ScratchFolder scratch;
  const std::string folder =
      changed_adapter(scratch, "alpha_pattern", {{"q_proj", 64}, {"layers.0.mlp.up_proj", 5}});
  const GgufAdapter written = export_gguf_adapter(kBase, folder, scratch.file("a.gguf"));
  CHECK(written.alpha == 16);
  const GgufFile file(scratch.file("a.gguf"));
  CHECK(file.get_float("adapter.lora.alpha") == 16);
  const AdapterFile plain = open_adapter(kAdapter);
  auto check_factor = [&](const std::string& module, const std::string& tensor, double factor) {
    const Shape shape = file.shape(tensor + ".lora_b");
    const HostFactors f = read_factors(plain, module, shape[0], file.shape(tensor + ".lora_a")[1]);
    std::vector<float> b(f.b.size()), want;
    file.read_rows(tensor + ".lora_b", 0, shape[0], b.data());
    for (float v : f.b) want.push_back(static_cast<float>(v * factor));
    if (tensor.find("attn_q") != tensor.npos) {  // its rows are in another order
      std::sort(b.begin(), b.end());
      std::sort(want.begin(), want.end());
    }
    CHECK(b == want);
  };
  check_factor("model.layers.0.self_attn.q_proj", "blk.0.attn_q.weight", 4);
  check_factor("model.layers.0.mlp.up_proj", "blk.0.ffn_up.weight", 5.0 / 16);
  check_factor("model.layers.1.mlp.up_proj", "blk.1.ffn_up.weight", 1);
}

TEST_CASE("merging scales each module by its own alpha, and its logits are those of the adapter") {
  ScratchFolder scratch;
  const std::string folder = changed_adapter(scratch, "alpha_pattern", {{"q_proj", 48}});
  for (const std::vector<WeightedAdapter>& adapters :
       {std::vector<WeightedAdapter>{{folder, 1}},
        std::vector<WeightedAdapter>{{folder, 0.5}, {kAdapter, 0.25}}}) {
    MergeSettings s;
    s.model = kBase;
    s.adapters = adapters;
    s.type = "f32";
    s.out = scratch.file(concat("merged", adapters.size()));
    merge(s, quiet);  // throws if the logits differ
    const ModelFile merged(s.out);
    for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"})
      check_merged(values_of(merged, std::string(module) + ".weight"), merged_f64(module, adapters),
                   1);
  }
}

TEST_CASE("a GGUF adapter is not made of what says nothing, or what float32 does not hold") {
  auto refused = [](double alpha, const Json& pattern, const char* message) {
    ScratchFolder scratch;
    const std::string folder = changed_adapter(scratch, "lora_alpha", alpha);
    Json config = read_json(folder + "/adapter_config.json");
    config["alpha_pattern"] = pattern;
    write_file_durably(folder + "/adapter_config.json", config.dump());
    CHECK_THROWS_WITH_AS(export_gguf_adapter(kBase, folder, scratch.file("a.gguf")),
                         doctest::Contains(message), InputError);
    CHECK(!stdfs::exists(scratch.file("a.gguf")));
  };
  refused(1e39, Json::object(), "adapter_config.json: lora_alpha");
  refused(1e-30, {{"up_proj", 1e38}}, "adapter_config.json: alpha_pattern");
  ScratchFolder scratch;
  const std::string out = scratch.file("a.gguf");
  const std::string folder = changed_adapter(scratch, "inference_mode", true);
  const SafetensorsFile file(kAdapter + "/adapter_model.safetensors");
  std::vector<SafetensorsEntry> tensors;
  for (const std::string& name : file.names()) {
    tensors.push_back({name, file.shape(name), read_all(file, name)});
    if (name.find("lora_B") != name.npos)
      std::fill(tensors.back().values.begin(), tensors.back().values.end(), 0.0F);
  }
  write_safetensors(folder + "/adapter_model.safetensors", tensors, {{"format", "pt"}});
  CHECK_THROWS_WITH_AS(export_gguf_adapter(kBase, folder, out),
                       doctest::Contains("adapter_model.safetensors: every lora_B is zero"),
                       InputError);
  CHECK(!stdfs::exists(out));
}

TEST_CASE("a trained head beside the matrices is refused by merge and export") {
  ScratchFolder scratch;
  const std::string folder = changed_adapter(scratch, "inference_mode", true);
  const SafetensorsFile file(kAdapter + "/adapter_model.safetensors");
  std::vector<SafetensorsEntry> tensors;
  for (const std::string& name : file.names())
    tensors.push_back({name, file.shape(name), read_all(file, name)});
  const ModelFile base(kBase);
  SafetensorsEntry head{"base_model.model.model.embed_tokens.weight", base.slots()[0].shape,
                        values_of(base, "model.embed_tokens.weight")};
  auto write = [&] {
    std::vector<SafetensorsEntry> all = tensors;
    all.push_back(head);
    write_safetensors(folder + "/adapter_model.safetensors", all, {{"format", "pt"}});
  };
  write();
  CHECK_NOTHROW(export_gguf_adapter(kBase, folder, scratch.file("same.gguf")));
  head.name = "base_model.model.model.embed_tokens.base_layer.weight";  // where it has A and B
  write();
  CHECK_NOTHROW(export_gguf_adapter(kBase, folder, scratch.file("wrapped.gguf")));
  head.values[5] += 1;
  write();
  CHECK_THROWS_WITH_AS(export_gguf_adapter(kBase, folder, scratch.file("b.gguf")),
                       doctest::Contains("embed_tokens.base_layer.weight' is not the base's own"),
                       InputError);
  head.name = "base_model.model.model.embed_tokens.weight";
  write();
  MergeSettings s;
  s.model = kBase;
  s.adapters = {{folder, 1}};
  s.out = scratch.file("merged");
  CHECK_THROWS_WITH_AS(merge(s, quiet), doctest::Contains("embed_tokens.weight"), InputError);
  CHECK_THROWS_WITH_AS(export_gguf_adapter(kBase, folder, scratch.file("b.gguf")),
                       doctest::Contains("embed_tokens.weight"), InputError);
}
