// Configurations with a field spoilt, of every family: refused or understood, never a crash.
#include <cmath>
#include <filesystem>

#include "hostile.h"
#include "io/fs.h"
#include "io/gguf.h"
#include "io/gguf_write.h"
#include "io/json.h"
#include "modelfile/config.h"

using namespace lk;
using namespace lk::test;

// Keys of config.json, of which no GGUF file has one.
constexpr const char* kOtherKeys[] = {
    "hidden_size",           "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",   "head_dim",          "rms_norm_eps",      "max_position_embeddings",
    "query_pre_attn_scalar", "rope_theta",        "rope_scaling",      "rope_local_base_freq"};

// Metadata of the golden files with one key spoilt: a config that validate() accepts or an error
// that names the file, whatever the value and its type.
TEST_CASE("GGUF metadata: hostile values of every key of every family") {
  const ScratchFolder scratch;
  struct NoSync : Fs {  // a thousand files that nobody keeps
    int fsync(int) override { return 0; }
  } fs;
  const FsOverride in_use(fs);
  const std::string path = scratch.file("hostile.gguf");
  std::vector<GgufValue> values = {gguf_u32(0),         gguf_u32(1),      gguf_u32(0xFFFFFFFF),
                                   gguf_f32(-1),        gguf_f32(0),      gguf_f32(std::nanf("")),
                                   gguf_f32(HUGE_VALF), gguf_f32(1e30f),  gguf_bool(true),
                                   gguf_string(""),     gguf_string("x"), gguf_ints({}),
                                   gguf_ints({-1, 3})};
  int refused = 0, accepted = 0;
  for (const char* name : {"tied_gqa", "qwen3", "gemma3", "gpt2"}) {
    const GgufFile good(std::string(LK_TEST_DATA) + "/golden/models/" + name + ".bf16.gguf");
    const GgufWriter::Metadata metadata = good.metadata();
    const std::string arch = good.get_string("general.architecture") + ".";
    std::vector<EncodedTensor> tensors;
    for (const std::string& tensor :
         {std::string("token_embd.weight"), std::string("blk.0.attn_norm.weight")}) {
      tensors.push_back({tensor, good.shape(tensor), find_ggml_encoder("F32")});
    }
    auto attempt = [&](const GgufWriter::Metadata& m, const std::string& key) {
      std::filesystem::remove(path);
      {
        GgufWriter file(path, m, tensors);
        for (const EncodedTensor& t : tensors) {
          const std::vector<char> zeros(t.bytes());
          file.append(zeros.data(), zeros.size());
        }
        file.commit();
      }
      CAPTURE(key);
      try {
        const ModelConfig c = config_from_gguf(GgufFile(path));
        CHECK_NOTHROW(validate(c, key));
        ++accepted;
      } catch (const InputError& e) {
        const std::string message = e.what();
        CHECK(message.find("hostile.gguf") != std::string::npos);
        for (const char* other : kOtherKeys)
          CHECK_MESSAGE(message.find(other) == std::string::npos, message);
        ++refused;
      }
    };
    attempt(metadata, "");
    CHECK(refused == 0);
    std::vector<std::string> keys;
    for (const auto& [key, value] : metadata) keys.push_back(key);
    for (const char* more :
         {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa",
          "rope.scaling.type", "rope.scaling.factor", "attention.scale", "attention.causal",
          "final_logit_softcapping", "expert_count", "attention.layer_norm_epsilon"})
      keys.push_back(arch + more);
    refused = 0;
    for (const std::string& key : keys) {
      if (key == "general.alignment") continue;
      GgufWriter::Metadata rest;
      for (const auto& entry : metadata)
        if (entry.first != key) rest.push_back(entry);
      attempt(rest, key + " absent");
      for (const GgufValue& value : values) {
        GgufWriter::Metadata spoilt = rest;
        spoilt.emplace_back(key, value);
        attempt(spoilt, key);
      }
    }
    CHECK(refused > 100);
    refused = 0;
  }
  CHECK(accepted > 100);
}

// config.json with one field spoilt: a config that validate() accepts or an error that names the
// file, whatever the value and its type.
TEST_CASE("config.json: hostile values of every field of every family") {
  const std::vector<Json> values = {nullptr,
                                    0,
                                    -1,
                                    1,
                                    3,
                                    1e30,
                                    -0.5,
                                    0.3,
                                    true,
                                    false,
                                    "",
                                    "x",
                                    Json::array(),
                                    Json::array({1, "x"}),
                                    Json::object(),
                                    Json::object({{"rope_type", "linear"}, {"factor", -1}}),
                                    std::int64_t{1} << 62,
                                    std::nan("")};
  int accepted = 0;
  for (const char* name :
       {"tied_gqa", "mistral_window", "qwen2_window", "qwen3", "gemma3_odd", "gpt2"}) {
    const Json good =
        read_json(std::string(LK_TEST_DATA) + "/golden/models/" + name + "/config.json");
    std::vector<std::string> keys;
    for (const auto& [key, value] : good.items()) keys.push_back(key);
    for (const char* more :
         {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
          "sliding_window_pattern", "rope_local_base_freq", "query_pre_attn_scalar", "rope_scaling",
          "rope_theta", "head_dim", "n_inner", "final_logit_softcapping", "quantization_config"})
      keys.push_back(more);
    int refused = 0;
    auto attempt = [&](const Json& json, const std::string& what) {
      CAPTURE(name);
      CAPTURE(what);
      try {
        const ModelConfig c = config_from_json(json, "config.json");
        CHECK_NOTHROW(validate(c, what));
        ++accepted;
      } catch (const InputError& e) {
        const std::string message = e.what();
        CHECK(message.find("config.json") != std::string::npos);
        CHECK(message.size() < 1000);
        ++refused;
      }
    };
    for (const std::string& key : keys) {
      Json json = good;
      json.erase(key);
      attempt(json, key + " absent");
      for (const Json& value : values) {
        json[key] = value;
        attempt(json, key + " " + value.dump());
      }
    }
    CHECK(refused > 100);
  }
  CHECK(accepted > 100);
}
