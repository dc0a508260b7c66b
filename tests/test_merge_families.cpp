// merge, unmerge and the GGUF adapter on every family: would catch a gain written with or without
// the 1 that its format wants, a projection or bias in the wrong order, a tensor left out, and a
// config that says something else than the base's.
#include "family_models.h"
#include "io/gguf.h"
#include "lora/export_gguf.h"
#include "lora/merge.h"
#include "modelfile/config.h"
#include "modelfile/family_files.h"
#include "modelfile/model_output.h"
#include "tensor_file.h"

using namespace lk;
using namespace lk::test;

namespace {

MergeListener quiet;

// Base + adapter and the merged model add the same numbers in another order: each of a few hundred
// products on the way to a logit is rounded differently by up to 2^-24 of its size.
constexpr double kLogits = 2e-5;

MergeSettings settings(const std::string& model, const std::string& adapter, double weight,
                       const std::string& out, const std::string& type = "f32") {
  MergeSettings s;
  s.model = model;
  s.adapters = {{adapter, weight}};
  s.out = out;
  s.type = type;
  s.other_base = true;  // formats change, and so do fingerprints
  return s;
}

MergeResult merge_into(const std::string& model, const std::string& adapter, const std::string& out,
                       const std::string& type = "f32", double weight = 1) {
  return merge(settings(model, adapter, weight, out, type), quiet);
}

// All tensors of a model file by their names there.
std::map<std::string, std::vector<float>> raw_tensors(const TensorReader& file) {
  std::map<std::string, std::vector<float>> all;
  for (const std::string& name : file.names()) all[name] = read_all(file, name);
  return all;
}

// What GGUF has no words for, by model; see "what GGUF can't say".
bool fits_gguf(const std::string& name) {
  return name != "mistral_window" && name != "qwen2_window" && name != "qwen3_odd" &&
         name != "gemma3_odd";
}

}  // namespace

TEST_CASE("every family merged into a folder: base + adapter's logits, the rest bit for bit") {
  for (const std::string& name : kFamilyModels) {
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), out = scratch.file("out"),
                      adapter = random_adapter(scratch, base);
    const MergeResult r = merge_into(base, adapter, out);
    MESSAGE(name << ": logits differ by " << *r.logit_difference / *r.largest_logit
                 << " of the largest");
    CHECK(*r.logit_difference <= kLogits * *r.largest_logit);
    CHECK(*r.largest_logit > 1);
    CHECK(read_json(out + "/config.json") == read_json(base + "/config.json"));
    const AdapterFile file = open_adapter(adapter);
    std::set<std::string> changed;
    for (const std::string& module : file.config.targets) changed.insert(module + ".weight");
    const auto before = raw_tensors(*open_safetensors_model(base)),
               after = raw_tensors(*open_safetensors_model(out));
    REQUIRE(before.size() == after.size());
    std::size_t different = 0;
    for (const auto& [tensor, values] : before) {
      CAPTURE(tensor);
      REQUIRE(after.count(tensor));
      const bool same = values == after.at(tensor);
      CHECK(same == !changed.count(tensor));
      different += !same;
    }
    CHECK(different == changed.size());
  }
}

namespace {

// The model with tensors of several types, of which `type_of` tells by name and number.
void retype(const std::string& model,
            const std::function<const char*(const std::string&, std::size_t)>& type_of) {
  const std::string path = model + "/model.safetensors";
  std::map<std::string, std::vector<float>> values = raw_tensors(SafetensorsFile(path));
  std::vector<EncodedTensor> tensors;
  {
    const SafetensorsFile file(path);
    for (const std::string& name : file.names())
      tensors.push_back({name, file.shape(name), find_ggml_encoder(type_of(name, tensors.size()))});
  }
  SafetensorsWriter::sort_as_reference(tensors);
  SafetensorsWriter file(path, {{"format", "pt"}}, tensors);
  for (const EncodedTensor& t : tensors) {
    std::vector<std::uint8_t> bytes;
    REQUIRE(round_to(*find_ggml_encoder(t.type->name), values.at(t.name), bytes));
    file.append(bytes.data(), bytes.size());
  }
  file.commit();
}

}  // namespace

TEST_CASE("a base whose tensors are of several types is merged, each in its own") {
  const char* three[] = {"F32", "BF16", "F16"};
  for (const std::string name : {"tied_gqa", "qwen2", "gemma3", "gpt2"})
    for (int kind = 0; kind < 5; ++kind) {
      CAPTURE(name);
      CAPTURE(kind);
      ScratchFolder scratch;
      const std::string base = runnable_model(scratch, name), out = scratch.file("out");
      const std::string first = ModelFile(base).slots()[name == "gpt2" ? 4 : 2].name;
      retype(base, [&](const std::string& tensor, std::size_t i) {
        if (kind == 0) return tensor == first ? "F32" : "BF16";
        if (kind == 1) return tensor == first ? "BF16" : "F32";
        if (kind == 2) return tensor == first ? "F16" : "BF16";
        // Norms and biases in BF16; only what the adapter changes in F32.
        if (kind == 3) return tensor.find("_proj.weight") == tensor.npos ? "BF16" : "F32";
        return three[i % 3];
      });
      const std::string adapter = random_adapter(scratch, base);
      const MergeResult r = merge_into(base, adapter, out, "");
      const ModelFile before(base), after(out);
      std::set<std::string> types;
      for (const WeightSlot& slot : before.slots()) {
        CHECK(after.stored_type(slot) == before.stored_type(slot));
        if (slot.linear) types.insert(before.stored_type(slot));
      }
      for (const std::string& type : types) CHECK(r.type.find(type) != r.type.npos);
      CHECK((kind > 2 || types.size() == 2));
      if (types.size() > 1) CHECK(read_json(out + "/config.json")["dtype"] == "float32");
      if (kind == 3 && name != "gpt2") CHECK(*r.logit_difference <= kLogits * *r.largest_logit);
      if (kind != 3) CHECK(*r.logit_difference <= 0.1 * *r.largest_logit);
    }
}

TEST_CASE("every family as GGUF and as a folder again: the same logits, and gains to the bit") {
  for (const std::string& name : kFamilyModels) {
    if (!fits_gguf(name)) continue;
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), gguf = scratch.file("out.gguf"),
                      adapter = random_adapter(scratch, base);
    const MergeResult r = merge_into(base, adapter, gguf);
    CHECK(*r.logit_difference <= kLogits * *r.largest_logit);
    {
      const GgufFile file(gguf);
      const ModelConfig from = config_from_folder(base), to = config_from_gguf(file);
      CHECK(file.get_string("general.architecture") == files_of(from).gguf);
      for (const std::string& tensor : file.names())
        if (file.shape(tensor).rank() == 1) CHECK(file.stored_type(tensor) == "F32");
      CHECK(to.window == from.window);
      CHECK(to.local == from.local);
      CHECK(to.n_parameters() == from.n_parameters());
      CHECK(to.rms_eps == from.rms_eps);
      CHECK(to.local_rope_theta == from.local_rope_theta);
    }
    // Nothing is added on the way back.
    const std::string folder = scratch.file("back"), again = scratch.file("again.gguf");
    const MergeResult back = merge_into(gguf, adapter, folder, "", 0);
    CHECK(*back.logit_difference <= kLogits * *back.largest_logit);
    CHECK(*back.largest_logit == doctest::Approx(*r.largest_logit).epsilon(kLogits));
    merge_into(gguf, adapter, again, "", 0);
    CHECK(raw_tensors(GgufFile(gguf)) == raw_tensors(GgufFile(again)));
    // F32 values of a folder keep 24 bits: a gain g is stored as g - 1 there.
    const auto first = raw_tensors(*open_safetensors_model(base)),
               last = raw_tensors(*open_safetensors_model(folder));
    for (const auto& [tensor, values] : first) {
      CAPTURE(tensor);
      REQUIRE(last.count(tensor));
      if (tensor.find("norm") == std::string::npos && tensor.find(".ln_") == std::string::npos)
        continue;
      for (std::size_t i = 0; i < values.size(); ++i)
        CHECK(std::abs(last.at(tensor)[i] - values[i]) <=
              (files_of(config_from_folder(base)).gain_minus_one ? 0x1p-22 : 0));
    }
  }
}

TEST_CASE("every family in every type of GGUF: each matrix as the type rounds base + update") {
  for (const std::string& name : kFamilyModels) {
    if (!fits_gguf(name)) continue;
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), adapter = random_adapter(scratch, base);
    merge_into(base, adapter, scratch.file("f32"));
    const ModelFile exact(scratch.file("f32"));
    for (std::string type : {"f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_1", "q3_k"}) {
      CAPTURE(name);
      CAPTURE(type);
      const std::string out = scratch.file(type + ".gguf");
      merge_into(base, adapter, out, type);
      const ModelFile merged(out);
      const GgufFile file(out);
      REQUIRE(merged.slots().size() == exact.slots().size());
      for (std::size_t i = 0; i < exact.slots().size(); ++i) {
        const WeightSlot& slot = exact.slots()[i];
        CAPTURE(slot.name);
        std::vector<float> want(static_cast<std::size_t>(slot.shape.numel())), got(want.size());
        std::vector<std::uint8_t> unused;
        exact.read_rows(slot, 0, slot.shape.rows(), want.data());
        const float shift = gain_shift(exact.stored(slot), merged.stored(slot));
        for (float& v : want) v += shift;
        CHECK(round_to(*find_ggml_encoder(merged.stored_type(slot)), want, unused));
        merged.read_rows(slot, 0, slot.shape.rows(), got.data());
        CHECK(got == want);
        if (slot.role == Role::Positions) CHECK(merged.stored_type(slot) == "F32");
      }
    }
  }
}

TEST_CASE("unmerge gives every family's base back, from each format") {
  for (const std::string& name : kFamilyModels) {
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), adapter = random_adapter(scratch, base);
    merge_into(base, adapter, scratch.file("merged"), "bf16");
    unmerge(settings(scratch.file("merged"), adapter, 1, scratch.file("b")), base, quiet);
    for (const char* file : {"/model.safetensors", "/config.json", "/tokenizer.json"})
      CHECK(slurp(base + file) == slurp(scratch.file("b") + file));
    CHECK_THROWS_AS(
        unmerge(settings(scratch.file("merged"), adapter, 0.5, scratch.file("no")), base, quiet),
        InputError);
    if (!fits_gguf(name)) continue;
    const std::string gguf = scratch.file("base.gguf");
    merge_into(base, adapter, gguf, "", 0);
    for (const std::string merged : {"m.gguf", "m"}) {
      merge_into(gguf, adapter, scratch.file(merged), "f16");
      const std::string back = scratch.file(merged + ".back.gguf");
      unmerge(settings(scratch.file(merged), adapter, 1, back), gguf, quiet);
      CHECK(slurp(gguf) == slurp(back));
    }
  }
}

TEST_CASE("every family's GGUF adapter names the base's tensors and has their shapes") {
  for (const std::string& name : kFamilyModels) {
    CAPTURE(name);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, name), adapter = random_adapter(scratch, base);
    const GgufAdapter written = export_gguf_adapter(base, adapter, scratch.file("a.gguf"));
    const GgufFile file(scratch.file("a.gguf"));
    const ModelFile model(base);
    const FileLayout layout = gguf_layout(model.config());
    CHECK(file.get_string("general.architecture") == files_of(*layout.family).gguf);
    CHECK(written.alpha == 8);
    const AdapterFile peft = open_adapter(adapter);
    std::size_t seen = 0;
    for (const WeightSlot& slot : model.slots()) {
      const std::string module = slot.name.substr(0, slot.name.rfind('.'));
      if (!slot.linear || slot.role == Role::Head) continue;
      const StoredTensor stored = layout.find(slot);
      const std::int64_t out = slot.shape[0], in = slot.shape[1];
      CAPTURE(stored.name);
      REQUIRE(file.has(stored.name + ".lora_a"));
      CHECK(file.shape(stored.name + ".lora_a") == Shape{4, in});
      CHECK(file.shape(stored.name + ".lora_b") == Shape{out, 4});
      const HostFactors f = read_factors(peft, module, out, in);
      std::vector<float> a(f.a.size()), b(f.b.size());
      file.read_rows(stored.name + ".lora_a", 0, 4, a.data());
      file.read_rows(stored.name + ".lora_b", 0, out, b.data());
      CHECK(a == f.a);
      stored.to_ours(b, 4);
      CHECK(b == f.b);
      ++seen;
    }
    CHECK(file.names().size() == 2 * seen);
  }
}

TEST_CASE("what GGUF can't say is refused by name; what it can is written and read back") {
  struct Case {
    const char *model, *names;
    std::function<void(Json&)> edit;
  };
  const std::vector<Case> refused = {
      {"mistral_window", "sliding_window: 50", {}},
      {"qwen2_window", "sliding_window: 40", {}},
      {"qwen3_odd", "attention_bias", {}},
      {"gemma3_odd", "layer_types", {}},  // full before local
      {"gemma3", "query_pre_attn_scalar: 17", [](Json& c) { c["query_pre_attn_scalar"] = 17; }},
      {"qwen3", "llama3",
       [](Json& c) {
         c["rope_parameters"] = {
             {"rope_type", "llama3"},   {"rope_theta", 1000.0},
             {"factor", 8.0},           {"low_freq_factor", 1.0},
             {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
       }},
  };
  for (const Case& c : refused) {
    CAPTURE(c.model);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, c.model, c.edit),
                      adapter = random_adapter(scratch, base);
    check_throws<UsageError>(c.model, {base + ": ", c.names, "folder"},
                             [&] { merge_into(base, adapter, scratch.file("out.gguf")); });
    CHECK(scratch.names().size() == 2);
    CHECK_NOTHROW(merge_into(base, adapter, scratch.file("out")));
  }
  const std::vector<Case> said = {
      {"biases", "", {}},
      // a window as long as the context hides nothing
      {"mistral_window", "", [](Json& c) { c["sliding_window"] = c["max_position_embeddings"]; }},
      {"gemma3_odd", "",
       [](Json& c) {
         c["layer_types"] = {"sliding_attention", "full_attention"};
         c["query_pre_attn_scalar"] = 10;
       }},
      {"gemma3_odd", "",
       [](Json& c) {
         c["layer_types"] = {"full_attention", "full_attention"};
         c["query_pre_attn_scalar"] = 10;
       }},
      {"gemma3_odd", "",
       [](Json& c) {
         c["layer_types"] = {"sliding_attention", "sliding_attention"};
         c["query_pre_attn_scalar"] = 10;
       }},
  };
  for (const Case& c : said) {
    CAPTURE(c.model);
    ScratchFolder scratch;
    const std::string base = runnable_model(scratch, c.model, c.edit),
                      adapter = random_adapter(scratch, base);
    const MergeResult r = merge_into(base, adapter, scratch.file("out.gguf"));
    CHECK(*r.logit_difference <= kLogits * *r.largest_logit);
    const ModelConfig from = config_from_folder(base),
                      to = ModelFile(scratch.file("out.gguf")).config();
    for (std::size_t i = 0; i < static_cast<std::size_t>(from.n_layers); ++i) {
      const bool hides = from.is_local(i) && from.window < from.max_position;
      CHECK(hides == to.is_local(i));
    }
    CHECK(from.local_rope_theta == to.local_rope_theta);
  }
}

TEST_CASE(
    "rope factors of no published rule stay in GGUF: a folder is refused, naming the tensor") {
  ScratchFolder scratch;
  const std::string base = runnable_model(
                        scratch, "tied_gqa",
                        [](Json&c) {
                          c["rope_parameters"] = {
                              {"rope_type", "llama3"},   {"rope_theta", 1000.0},
                              {"factor", 8.0},           {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
                          c.erase("rope_scaling"), c.erase("rope_theta");
                        }),
                    gguf = scratch.file("model.gguf");
  auto written = [](const std::string& model, const std::string& out) {
    MergeListener quiet;
    MergeSettings s;
    s.model = model, s.out = out;
    return merge(s, quiet);
  };
  written(base, gguf);
  check_throws<UsageError>("folder",
                           {gguf + ": tensor rope_freqs.weight", "write a .gguf file instead"},
                           [&] { written(gguf, scratch.file("out")); });
  CHECK(scratch.names().size() == 2);
  CHECK_NOTHROW(written(gguf, scratch.file("again.gguf")));
}
