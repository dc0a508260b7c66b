// Configurations: what is read, what is refused and by which name, rotary frequencies.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cpu/cpu_backend.h"
#include "harness.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "modelfile/config.h"
#include "modelfile/hub_cache.h"
#include "modelfile/hub_name.h"
#include "modelfile/model_file.h"
#include "modelfile/named_shapes.h"
#include "scratch_folder.h"
#include "tiny_gguf.h"

namespace lk {
namespace {

using test::TinyGguf;

Json llama() {
  return parse_json(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16"})",
                    "test");
}

// The message with which a config is refused; empty if it is accepted.
std::string refusal(const Json& json) {
  try {
    config_from_json(json, "config.json");
  } catch (const InputError& e) {
    return e.what();
  }
  return "";
}

bool mentions(const std::string& message, const std::string& word) {
  return message.find(word) != std::string::npos;
}

// A field set to a value is refused with a message that names file and field.
void check_refused(const std::string& key, const Json& value) {
  Json json = llama();
  json[key] = value;
  std::string message = refusal(json);
  CHECK_MESSAGE((mentions(message, key) && mentions(message, "config.json")), key, " = ",
                value.dump(), " gave: '", message, "'");
}

std::string temp_path(const std::string& name) {
  static const test::ScratchFolder folder;
  return folder.file(name);
}

// A minimal llama in GGUF: 1 layer, 2 heads of 4, vocabulary 6.
TinyGguf tiny_gguf() {
  TinyGguf b;
  b.string("general.architecture", "llama")
      .u32("llama.context_length", 128)
      .u32("llama.embedding_length", 8)
      .u32("llama.block_count", 1)
      .u32("llama.feed_forward_length", 12)
      .u32("llama.attention.head_count", 2)
      .u32("llama.attention.head_count_kv", 1)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .f32("llama.rope.freq_base", 500000.0f)
      .u32("llama.rope.dimension_count", 4)
      .tensor("token_embd.weight", {6, 8}, std::vector<float>(48, 0.5f));
  return b;
}

ModelConfig read_gguf(const TinyGguf& b) {
  std::string path = temp_path("model.gguf");
  b.write(path);
  return config_from_gguf(GgufFile(path));
}

std::string gguf_refusal(const TinyGguf& b) {
  try {
    read_gguf(b);
  } catch (const InputError& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("config.json: a llama config of transformers 4") {
  ModelConfig c = config_from_json(llama(), "config.json");
  CHECK(c.architecture == "llama");
  CHECK(c.vocab_size == 1000);
  CHECK(c.hidden_size == 64);
  CHECK(c.intermediate_size == 96);
  CHECK(c.n_layers == 3);
  CHECK(c.n_heads == 4);
  CHECK(c.n_kv_heads == 2);
  CHECK(c.head_dim == 16);
  CHECK(c.rms_eps == 1e-5);
  CHECK(c.rope_theta == 10000);
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::None);
  CHECK(c.max_position == 2048);
  CHECK(c.tie_embeddings);
  CHECK_FALSE(c.attention_bias);
  CHECK(c.bos_id == 1);
  CHECK(c.eos_ids == std::vector<std::int32_t>{2});
  CHECK(c.stored_dtype == "bfloat16");
}

TEST_CASE("config.json: optional fields") {
  Json json = llama();
  for (const char* key : {"num_key_value_heads", "rope_theta", "bos_token_id", "eos_token_id",
                          "architectures", "torch_dtype", "tie_word_embeddings", "rms_norm_eps"})
    json.erase(key);
  ModelConfig c = config_from_json(json, "config.json");
  CHECK(c.n_kv_heads == 4);
  CHECK(c.rms_eps == 1e-6);
  CHECK(c.bos_id == -1);
  CHECK(c.eos_ids.empty());
  CHECK_FALSE(c.tie_embeddings);
  // null is "absent" where transformers writes null itself.
  json = llama();
  for (const char* key : {"num_key_value_heads", "head_dim", "rope_scaling", "bos_token_id",
                          "sliding_window", "quantization_config"})
    json[key] = nullptr;
  CHECK(refusal(json) == "");
  json["eos_token_id"] = {2, 7};
  json["head_dim"] = 32;
  json["rope_interleaved"] = false;  // SmolLM2's file has it
  json["pretraining_tp"] = 1;
  c = config_from_json(json, "config.json");
  CHECK(c.eos_ids == std::vector<std::int32_t>{2, 7});
  CHECK(c.head_dim == 32);
  CHECK(c.q_size() == 128);
}

TEST_CASE("config.json: rotary scaling of transformers 4 and 5") {
  Json llama3 = {{"factor", 32.0},
                 {"low_freq_factor", 1.0},
                 {"high_freq_factor", 4.0},
                 {"original_max_position_embeddings", 8192},
                 {"rope_type", "llama3"}};
  Json json = llama();
  json["rope_theta"] = 500000;
  json["rope_scaling"] = llama3;
  ModelConfig v4 = config_from_json(json, "config.json");
  CHECK(v4.rope_scaling.kind == RopeScaling::Kind::Llama3);
  CHECK(v4.rope_scaling.factor == 32);
  CHECK(v4.rope_scaling.original_max_position == 8192);
  Json newer = llama();
  newer.erase("rope_theta");
  newer.erase("torch_dtype");
  newer["dtype"] = "bfloat16";
  newer["rope_parameters"] = llama3;
  newer["rope_parameters"]["rope_theta"] = 500000.0;
  ModelConfig v5 = config_from_json(newer, "config.json");
  CHECK(v5.rope_theta == 500000);
  CHECK(v5.stored_dtype == "bfloat16");
  CHECK(inverse_frequencies(v4) == inverse_frequencies(v5));
  // The length may stand outside.
  for (Json outside : {json, newer}) {
    outside["original_max_position_embeddings"] = 8192;
    CHECK(refusal(outside) == "");
    outside["original_max_position_embeddings"] = 4096;
    CHECK(mentions(refusal(outside), "original_max_position_embeddings"));
    const char* field = outside.contains("rope_scaling") ? "rope_scaling" : "rope_parameters";
    outside[field].erase("original_max_position_embeddings");
    CHECK(config_from_json(outside, "config.json").rope_scaling.original_max_position == 4096);
    outside[field] = {{"rope_type", "default"}, {"rope_theta", 500000}};
    CHECK(refusal(outside) == "");
  }
  // Both at once: fine if they agree.
  json["rope_parameters"] = newer["rope_parameters"];
  CHECK(refusal(json) == "");
  json["rope_theta"] = 10000.0;
  CHECK(mentions(refusal(json), "rope_theta"));
  json["rope_theta"] = 500000;
  json["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  CHECK(mentions(refusal(json), "rope_scaling"));
  json.erase("rope_parameters");
  ModelConfig linear = config_from_json(json, "config.json");
  CHECK(linear.rope_scaling.kind == RopeScaling::Kind::Linear);
  CHECK(linear.rope_scaling.factor == 2);
}

TEST_CASE("config.json: mistral and qwen2") {
  Json json = llama();
  json["model_type"] = "mistral";
  json["architectures"] = {"MistralForCausalLM"};
  json["max_position_embeddings"] = 32768;
  ModelConfig windowed = config_from_json(json, "config.json");
  CHECK(windowed.window == 4096);  // what an absent key means
  CHECK((windowed.is_local(0) && windowed.is_local(2)));
  json["sliding_window"] = nullptr;
  CHECK_FALSE(config_from_json(json, "config.json").is_local(0));
  json["sliding_window"] = 50;
  CHECK(config_from_json(json, "config.json").window == 50);
  CHECK(config_to_json(config_from_json(json, "config.json"))["sliding_window"] == 50);
  json["sliding_window"] = 0;
  CHECK(mentions(refusal(json), "sliding_window"));
  json["sliding_window"] = 50;
  json["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  CHECK(mentions(refusal(json), "layer_types"));
  json = llama();
  json["model_type"] = "qwen2";
  json["architectures"] = {"Qwen2ForCausalLM"};
  json["sliding_window"] = 512;
  json["use_sliding_window"] = false;
  ModelConfig c = config_from_json(json, "config.json");
  CHECK(c.attention_bias);
  CHECK_FALSE(c.attention_output_bias);
  CHECK(c.window == 0);
  json["use_sliding_window"] = true;
  CHECK(config_from_json(json, "config.json").window == 0);  // only layers from 28 on have it
  json["max_window_layers"] = 1;
  c = config_from_json(json, "config.json");
  CHECK(c.window == 512);
  CHECK((!c.is_local(0) && c.is_local(1) && c.is_local(2)));
  json["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  c = config_from_json(json, "config.json");
  CHECK((c.is_local(0) && !c.is_local(1)));
  json["layer_types"] = {"sliding_attention", "chunked_attention", "full_attention"};
  CHECK(mentions(refusal(json), "layer_types"));
  json["layer_types"] = {"full_attention"};
  CHECK(mentions(refusal(json), "layer_types"));
}

namespace {

Json golden_config(const std::string& name) {
  return read_json(std::string(LK_TEST_DATA) + "/golden/models/" + name + "/config.json");
}

// Each change to a golden config is refused with a message that names the field.
void check_family_refusals(const std::string& name,
                           const std::vector<std::pair<std::string, Json>>& changes) {
  CHECK(refusal(golden_config(name)) == "");
  for (const auto& [key, value] : changes) {
    Json json = golden_config(name);
    json[key] = value;
    CHECK_MESSAGE(mentions(refusal(json), key), name, ": ", key, " = ", value.dump(), " gave: '",
                  refusal(json), "'");
  }
}

}  // namespace

TEST_CASE("config.json: qwen3, gemma3_text, gpt2") {
  ModelConfig qwen3 = config_from_json(golden_config("qwen3"), "c");
  CHECK(qwen3.qk_norm);
  CHECK(qwen3.head_dim == 10);
  CHECK_FALSE(qwen3.attention_bias);
  ModelConfig gemma = config_from_json(golden_config("gemma3_odd"), "c");
  CHECK(gemma.mlp == MlpKind::GeGlu);
  CHECK((gemma.sandwich_norms && gemma.qk_norm && gemma.scaled_embedding && gemma.tie_embeddings));
  CHECK(gemma.query_scale == 17);
  CHECK(gemma.rope_theta == 20000);
  CHECK(gemma.rope_scaling.factor == 4);
  CHECK(gemma.local_rope_theta == 700);
  CHECK((!gemma.is_local(0) && gemma.is_local(1)));
  // The config as transformers 4 writes it.
  Json old = golden_config("gemma3");
  const ModelConfig newer = config_from_json(old, "c");
  CHECK(newer.is_local(4));
  CHECK_FALSE(newer.is_local(5));
  old.erase("rope_parameters");
  old.erase("layer_types");
  old["rope_theta"] = newer.rope_theta;
  old["rope_local_base_freq"] = newer.local_rope_theta;
  old["sliding_window_pattern"] = 6;
  CHECK(config_to_json(config_from_json(old, "c")) == config_to_json(newer));
  ModelConfig gpt2 = config_from_json(golden_config("gpt2_odd"), "c");
  CHECK((gpt2.norm == NormKind::Layer && gpt2.mlp == MlpKind::Gelu));
  CHECK((gpt2.learned_positions && gpt2.joined_qkv && gpt2.tie_embeddings));
  CHECK(gpt2.head_dim == 7);
  CHECK(gpt2.intermediate_size == 20);
  CHECK(config_from_json(golden_config("gpt2"), "c").intermediate_size == 64);  // 4 n_embd
}

TEST_CASE("config.json: what a family does not have is refused by name") {
  check_family_refusals("qwen3", {{"head_dim", nullptr},
                                  {"hidden_act", "gelu_new"},
                                  {"rope_local_base_freq", 1e4},
                                  {"query_pre_attn_scalar", 10},
                                  {"mlp_bias", true},
                                  {"architectures", {"Qwen3MoeForCausalLM"}}});
  check_family_refusals("gemma3", {{"final_logit_softcapping", 30.0},
                                   {"attn_logit_softcapping", 50.0},
                                   {"use_bidirectional_attention", true},
                                   {"hidden_activation", "gelu"},
                                   {"query_pre_attn_scalar", nullptr},
                                   {"query_pre_attn_scalar", 0},
                                   {"sliding_window", nullptr},
                                   {"layer_types", {"sliding_attention"}},
                                   {"model_type", "gemma2"},
                                   {"text_config", Json::object({{"a", 1}})}});
  check_family_refusals("gpt2", {{"scale_attn_weights", false},
                                 {"scale_attn_by_inverse_layer_idx", true},
                                 {"reorder_and_upcast_attn", true},
                                 {"add_cross_attention", true},
                                 {"activation_function", "gelu"},
                                 {"n_head", 3},
                                 {"n_inner", 0},
                                 {"sliding_window", 8},
                                 {"layer_norm_epsilon", 0}});
}

// What transformers 5 reads of these classes beyond their own fields.
TEST_CASE("config.json: fields that every class of transformers has are refused by name") {
  for (const char* model : {"tied_gqa", "mistral_window", "qwen2", "qwen3", "gemma3", "gpt2"})
    check_family_refusals(model, {{"per_layer_config", {{"0", {{"num_attention_heads", 1}}}}},
                                  {"is_encoder_decoder", true},
                                  {"is_causal", false},
                                  {"quantization_config", {{"quant_method", "hqq"}}},
                                  {"auto_map", {{"AutoModelForCausalLM", "a.B"}}}});
  // Other families' names for GPT-2's sizes win in transformers.
  check_family_refusals("gpt2", {{"hidden_size", 32},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", 2},
                                 {"max_position_embeddings", 100}});
  Json gpt2 = golden_config("gpt2");
  gpt2["hidden_size"] = gpt2["n_embd"];
  CHECK_NOTHROW(config_from_json(gpt2, "c"));
  // What is out of range is called as GPT-2's file calls it.
  check_family_refusals("gpt2", {{"n_embd", 1 << 21},
                                 {"n_inner", 1 << 21},
                                 {"n_layer", 5000},
                                 {"n_positions", 1},
                                 {"n_positions", 1 << 25}});
  gpt2 = golden_config("gpt2");
  gpt2["n_embd"] = 4096, gpt2["n_head"] = 1;
  CHECK(mentions(refusal(gpt2), "n_embd / n_head: 4096 is not in"));
  gpt2["n_embd"] = gpt2["n_head"] = 8192;
  CHECK(mentions(refusal(gpt2), "n_head: 8192 is not in"));
  // Local layers without a window.
  check_family_refusals("qwen2_window",
                        {{"use_sliding_window", false}, {"sliding_window", nullptr}});
  // Gemma's two kinds of layers have angles of their own: one set of them is neither's.
  check_family_refusals("gemma3", {{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}}},
                                   {"rope_parameters", {{"rope_type", "default"}}},
                                   {"rope_parameters", {{"full_attention", {{"factor", 2.0}}}}},
                                   {"rope_parameters", Json::array()}});
}

TEST_CASE("config.json: a base of rotary angles inside of rope_scaling counts, as it does there") {
  Json json = llama();
  json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 777.0}};
  CHECK(mentions(refusal(json), "rope_theta"));  // next to another one at the top level
  json.erase("rope_theta");
  CHECK(config_from_json(json, "c").rope_theta == 777);
}

TEST_CASE(
    "config.json: rope_scaling and rope_parameters of other bases are refused, of one are read") {
  auto both = [](const Json& older, const Json& newer) {
    Json json = llama();
    json.erase("rope_theta");
    json["rope_scaling"] = older, json["rope_parameters"] = newer;
    return json;
  };
  auto theta = [](const Json& json) { return config_from_json(json, "c").rope_theta; };
  auto check_both_named = [](const Json& json) {
    const std::string message = refusal(json);
    for (const char* word : {"rope_scaling", "rope_parameters", "rope_theta", "500"})
      CHECK_MESSAGE(mentions(message, word), json.dump(), " gave: '", message, "'");
  };
  const Json plain = {{"rope_type", "default"}},
             linear = {{"rope_type", "linear"}, {"factor", 4.0}};
  auto with_base = [](Json rope, double base) {
    rope["rope_theta"] = base;
    return rope;
  };
  for (const Json& rope : {plain, linear}) {
    check_both_named(both(rope, with_base(rope, 500)));  // of the one it is 10,000
    check_both_named(both(with_base(rope, 500), rope));
    check_both_named(both(with_base(rope, 700), with_base(rope, 500)));
    CHECK(theta(both(with_base(rope, 500), with_base(rope, 500))) == 500);
    Json top = both(rope, with_base(rope, 500));
    top["rope_theta"] = 500;
    CHECK(theta(top) == 500);
    CHECK(theta(both(with_base(rope, 10000), rope)) == 10000);
  }
  CHECK(theta(both(Json::object(), with_base(linear, 500))) == 500);  // an empty object is none
  // Of Gemma the keys of rope_scaling are put over those of the global layers.
  Json gemma = golden_config("gemma3");
  Json& full = gemma["rope_parameters"]["full_attention"];
  full["rope_theta"] = 500.0;
  gemma["rope_scaling"] = {{"rope_theta", 700.0}};
  check_both_named(gemma);
  gemma["rope_scaling"] = {{"rope_theta", 500.0}};
  CHECK(theta(gemma) == 500);
  gemma["rope_scaling"] = plain;
  CHECK(theta(gemma) == 500);
  full.erase("rope_theta");
  gemma["rope_scaling"] = with_base(plain, 700);
  CHECK(theta(gemma) == 700);
}

TEST_CASE(
    "config.json: words for Gemma that transformers does not read there are refused by name") {
  Json older = golden_config("gemma3");
  older.erase("rope_parameters");
  older["rope_scaling"] = {{"type", "linear"}, {"factor", 8.0}};
  CHECK(mentions(refusal(older), "rope_scaling: type: "));
  older["rope_scaling"]["rope_type"] = "linear";
  CHECK(config_from_json(older, "c").rope_scaling.factor == 8);
  older["rope_scaling"] = {{"type", "default"}};
  CHECK(refusal(older) == "");
  older["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", 8.0},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0}};
  older["original_max_position_embeddings"] = 32;
  CHECK(mentions(refusal(older), "original_max_position_embeddings: "));
  older["rope_scaling"]["original_max_position_embeddings"] = 32;
  CHECK(config_from_json(older, "c").rope_scaling.original_max_position == 32);
  Json pattern = golden_config("gemma3");
  pattern["_sliding_window_pattern"] = 2;  // layer_types counts
  CHECK(config_from_json(pattern, "c").is_local(1));
  pattern.erase("layer_types");
  CHECK(mentions(refusal(pattern), "_sliding_window_pattern"));
  pattern["sliding_window_pattern"] = 2;
  CHECK_FALSE(config_from_json(pattern, "c").is_local(1));
}

TEST_CASE("config.json: use_sliding_window takes no window from a family that has no such key") {
  for (const char* name : {"mistral_window", "gemma3"}) {
    Json json = golden_config(name);
    json["use_sliding_window"] = true;
    CHECK(config_from_json(json, "c").window > 0);
    json["use_sliding_window"] = false;
    CHECK(mentions(refusal(json), "use_sliding_window"));
    CHECK(mentions(refusal(json), "sliding_window, "));
  }
  Json mistral = golden_config("mistral_window");
  mistral["use_sliding_window"] = false;
  mistral.erase("sliding_window");  // 4,096
  CHECK(mentions(refusal(mistral), "4096"));
  mistral["sliding_window"] = nullptr;
  CHECK(config_from_json(mistral, "c").window == 0);
}

TEST_CASE("config.json: absurd sizes are refused") {  // C1, C2, C3, C5, C11
  for (const char* key :
       {"hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings"}) {
    for (const char* value : {"0", "-1", "1000000000", "9223372036854775807", "9223372036854775808",
                              "18446744073709551615", "\"4096\"", "1.5", "[]", "true"})
      check_refused(key, parse_json(value, "test"));
  }
  for (const char* key : {"hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    check_refused(key, nullptr);
    Json json = llama();
    json.erase(key);
    CHECK(mentions(refusal(json), key));
  }
  Json json = llama();
  json["hidden_size"] = 66;
  CHECK(mentions(refusal(json), "num_attention_heads"));
  json = llama();
  json["num_key_value_heads"] = 3;
  CHECK(mentions(refusal(json), "key/value heads"));
  json["num_key_value_heads"] = 8;
  CHECK(mentions(refusal(json), "key/value heads"));
  json = llama();
  json["head_dim"] = 7;
  CHECK(mentions(refusal(json), "head_dim"));
  check_refused("head_dim", 0);
  check_refused("max_position_embeddings", 1);
  check_refused("head_dim", 1 << 20);
}

TEST_CASE("config.json: reals out of range are refused") {  // C6, C7
  for (const char* value : {"0", "-1", "1e300", "\"x\"", "false"}) {
    check_refused("rope_theta", parse_json(value, "test"));
    check_refused("rms_norm_eps", parse_json(value, "test"));
  }
  Json json = llama();
  double inf = std::numeric_limits<double>::infinity();
  for (double value : {inf, -inf, std::nan("")}) {  // JSON has no text for these
    json["rope_theta"] = value;
    CHECK(mentions(refusal(json), "rope_theta"));
  }
  CHECK_THROWS_AS(parse_json(R"({"rope_theta": 1e400})", "config.json"), InputError);
  CHECK_THROWS_AS(parse_json(R"({"rope_theta": NaN})", "config.json"), InputError);
}

TEST_CASE("config.json: what would change the maths is refused by name") {  // C8, C12, C13
  check_refused("model_type", "mamba");
  check_refused("model_type", "granite");
  check_refused("architectures", {"LlamaForSequenceClassification"});
  check_refused("architectures", {"LlamaForCausalLM", "Other"});
  check_refused("hidden_act", "gelu");
  check_refused("sliding_window", 1024);
  check_refused("partial_rotary_factor", 0.5);
  check_refused("rope_interleaved", true);
  check_refused("attn_logit_softcapping", 50.0);
  check_refused("final_logit_softcapping", 30.0);
  check_refused("residual_multiplier", 0.22);
  check_refused("embedding_multiplier", 12.0);
  check_refused("logits_scaling", 8.0);
  check_refused("attention_multiplier", 0.0078125);
  check_refused("query_pre_attn_scalar", 256);
  check_refused("attention_dropout", 0.1);
  check_refused("quantization_config", {{"quant_method", "hqq"}});
  check_refused("num_local_experts", 8);
  check_refused("no_rope_layers", {1, 1, 0});
  check_refused("layer_types", {"full_attention", "sliding_attention", "full_attention"});
  check_refused("auto_map", {{"AutoModelForCausalLM", "modeling.Net"}});
  check_refused("torch_dtype", "float8_e4m3fn");
  check_refused("torch_dtype", 16);
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "mrope"}) {
    Json json = llama();
    json["rope_scaling"] = {{"rope_type", type}, {"factor", 2.0}};
    CHECK(mentions(refusal(json), type));
  }
  // Fields that a rope type does not have, or lacks.
  check_refused("rope_scaling",
                {{"rope_type", "linear"}, {"factor", 2.0}, {"attention_factor", 2.0}});
  check_refused("rope_scaling", {{"rope_type", "linear"}});
  check_refused("rope_scaling", {{"rope_type", "linear"}, {"factor", 0}});
  check_refused("rope_scaling", {{"rope_type", "linear"}, {"type", "dynamic"}, {"factor", 2.0}});
  check_refused("rope_scaling", "linear");
  check_refused("rope_parameters", {{"full_attention", {{"rope_type", "default"}}}});
  Json json = llama();
  json["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 4.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 8192}};
  CHECK(mentions(refusal(json), "high_freq_factor"));
  // Ids beyond the vocabulary.
  check_refused("eos_token_id", 1000);
  check_refused("eos_token_id", {2, nullptr});
  check_refused("bos_token_id", -1);
  check_refused("bos_token_id", 4000000000LL);
  CHECK(refusal(Json::array()) != "");
  CHECK(refusal(Json::object()) != "");
}

TEST_CASE(
    "config.json: fields that change the maths are accepted where their value switches them off") {
  const std::pair<const char*, std::vector<Json>> neutral[] = {
      {"partial_rotary_factor", {1, 1.0}},
      {"rotary_pct", {1, 1.0}},
      {"rope_interleaved", {false}},
      {"rope_local_base_freq", {}},
      {"no_rope_layers", {}},
      {"no_rope_layer_interval", {0}},
      {"attn_logit_softcapping", {}},
      {"final_logit_softcapping", {}},
      {"query_pre_attn_scalar", {}},
      {"attention_multiplier", {}},
      {"attn_temperature_tuning", {false, 0}},
      {"residual_multiplier", {1, 1.0}},
      {"embedding_multiplier", {1, 1.0}},
      {"logits_scaling", {1, 1.0}},
      {"logit_scale", {1, 1.0}},
      {"scale_emb", {1, 1.0}},
      {"scale_depth", {}},
      {"clip_qkv", {}},
      {"use_qk_norm", {false}},
      {"qk_norm", {false}},
      {"qk_layernorm", {false}},
      {"alibi", {false}},
      {"sliding_window_pattern", {}},
      {"_sliding_window_pattern", {}},
      {"scale_attn_weights", {true}},
      {"scale_attn_by_inverse_layer_idx", {false}},
      {"reorder_and_upcast_attn", {false}},
      {"is_causal", {true}},
      {"use_bidirectional_attention", {false}},
      {"is_encoder_decoder", {false}},
      {"add_cross_attention", {false}},
      {"attention_dropout", {0, 0.0}},
      {"hidden_dropout", {0, 0.0}},
      {"num_local_experts", {0, 1}},
      {"num_experts", {0, 1}},
      {"n_routed_experts", {0}},
      {"pruned_heads", {Json::object()}},
      {"compression_config", {}},
      {"text_config", {}},
      {"vision_config", {}},
      {"per_layer_config", {}},
      {"auto_map", {}},
      {"transformers_weights", {}}};
  for (const auto& [key, values] : neutral) {
    CAPTURE(key);
    Json json = llama();
    json[key] = nullptr;
    CHECK(refusal(json) == "");
    for (const Json& value : values) {
      json[key] = value;
      CHECK(refusal(json) == "");
    }
    check_refused(key, 7);
    check_refused(key, {{"0", {1}}});
  }
}

TEST_CASE("config.json: duplicate keys, wrong files") {  // C10
  std::string folder = temp_path("folder");
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({"model_type": "llama", "model_type": "llama"})";
  CHECK_THROWS_AS(config_from_folder(folder), InputError);
  std::ofstream(folder + "/config.json") << "{";
  CHECK_THROWS_AS(config_from_folder(folder), InputError);
  std::filesystem::remove(folder + "/config.json");
  CHECK_THROWS_AS(config_from_folder(folder), Error);
}

TEST_CASE("config.json: written and read again") {
  for (const char* name :
       {"tied_gqa", "mqa", "biases", "llama3_rope", "mistral_linear", "qwen2", "mistral_window",
        "qwen2_window", "qwen3", "qwen3_odd", "gemma3", "gemma3_odd", "gpt2", "gpt2_odd"}) {
    CAPTURE(name);
    std::string folder = std::string(LK_TEST_DATA) + "/golden/models/" + name;
    ModelConfig a = config_from_folder(folder);
    Json json = config_to_json(a);
    ModelConfig b = config_from_json(json, "again");
    CHECK(config_to_json(b) == json);
    CHECK(inverse_frequencies(a) == inverse_frequencies(b));
    CHECK(a.architecture == b.architecture);
    CHECK(a.n_parameters() == b.n_parameters());
    CHECK(a.attention_bias == b.attention_bias);
    CHECK(a.attention_output_bias == b.attention_output_bias);
    CHECK(a.mlp_bias == b.mlp_bias);
    CHECK(a.eos_ids == b.eos_ids);
    CHECK(a.stored_dtype == b.stored_dtype);
    CHECK(a.window == b.window);
    CHECK(a.local == b.local);
    CHECK(local_inverse_frequencies(a) == local_inverse_frequencies(b));
    CHECK(a.query_scale == b.query_scale);
    if (a.learned_positions) continue;
    const Json& rope = json["rope_parameters"];
    CHECK((rope.contains("full_attention") ? rope["full_attention"] : rope)["rope_theta"] ==
          json["rope_theta"]);
  }
}

TEST_CASE("named shapes have their published sizes") {
  CHECK(named_shape("smollm2-135m").n_parameters() == 134515008);
  CHECK(named_shape("smollm2-360m").n_parameters() == 361821120);
  CHECK(named_shape("smollm2-1.7b").n_parameters() == 1711376384);
  CHECK(named_shape("gpt2-124m").n_parameters() == 124439808);
  CHECK(named_shape("gpt2-medium").n_parameters() == 354823168);
  CHECK(named_shape("gemma3-270m").n_parameters() == 268098176);
  CHECK(named_shape("gemma3-1b").n_parameters() == 999885952);
  CHECK(named_shape("gemma3-4b").n_parameters() == 3880263168);
  CHECK(named_shape("qwen2.5-0.5b").n_parameters() == 494032768);
  CHECK(named_shape("qwen2.5-7b").n_parameters() == 7615616512);
  CHECK(named_shape("qwen3-0.6b").n_parameters() == 596049920);
  CHECK(named_shape("qwen3-8b").n_parameters() == 8190735360);
  CHECK(named_shape("tinyllama-1.1b").n_parameters() == 1100048384);
  CHECK(named_shape("llama3.2-1b").n_parameters() == 1235814400);
  CHECK(named_shape("llama3.2-3b").n_parameters() == 3212749824);
  CHECK(named_shape("llama2-7b").n_parameters() == 6738415616);
  CHECK(named_shape("llama3-8b").n_parameters() == 8030261248);
  CHECK(named_shape("llama3-70b").n_parameters() == 70553706496);
  CHECK(named_shape("mistral-7b").n_parameters() == 7248023552);
  CHECK_THROWS_AS(named_shape("gpt-5"), UsageError);
}

TEST_CASE("GGUF metadata: read") {
  ModelConfig c = read_gguf(tiny_gguf());
  CHECK(c.architecture == "llama");
  CHECK(c.vocab_size == 6);
  CHECK(c.head_dim == 4);
  CHECK(c.n_kv_heads == 1);
  CHECK(c.rms_eps == 1e-5);  // not the float32 next to it
  CHECK(c.rope_theta == 500000);
  CHECK(c.tie_embeddings);
  CHECK(c.bos_id == -1);
  c = read_gguf(tiny_gguf()
                    .tensor("output.weight", {6, 8}, std::vector<float>(48, 1.0f))
                    .tensor("blk.0.attn_q.bias", {8}, std::vector<float>(8, 1.0f))
                    .tensor("rope_freqs.weight", {2}, {1.0f, 8.0f})
                    .u32("tokenizer.ggml.bos_token_id", 1)
                    .u32("tokenizer.ggml.eos_token_id", 5));
  // Keys that say nothing without experts or YaRN, nor of the other kind of norm.
  CHECK_NOTHROW(read_gguf(tiny_gguf()
                              .u32("llama.expert_feed_forward_length", 4)
                              .u32("llama.rope.scaling.original_context_length", 8)
                              .f32("llama.attention.layer_norm_epsilon", 1e-5f)));
  CHECK_FALSE(c.tie_embeddings);
  CHECK(c.attention_bias);
  CHECK_FALSE(c.attention_output_bias);
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::Factors);
  CHECK(c.rope_scaling.factors == std::vector<float>{1.0f, 8.0f});
  CHECK(c.bos_id == 1);
  CHECK(c.eos_ids == std::vector<std::int32_t>{5});
  c = read_gguf(tiny_gguf()
                    .string("llama.rope.scaling.type", "linear")
                    .f32("llama.rope.scaling.factor", 2.5f));
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::Linear);
  CHECK(c.rope_scaling.factor == 2.5);
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    c = read_gguf(tiny_gguf().f32(key, 2.5f));  // linear is the type that needs no name
    CHECK(c.rope_scaling.kind == RopeScaling::Kind::Linear);
    CHECK(c.rope_scaling.factor == 2.5);
    c = read_gguf(tiny_gguf().f32(key, 2.5f).string("llama.rope.scaling.type", "none"));
    CHECK(c.rope_scaling.kind == RopeScaling::Kind::None);
  }
  // Llama 3.2's published rule is recognised behind its factors.
  std::vector<float> factors;
  for (int i = 0; i < 32; ++i) {
    double turns = 8192 * std::pow(500000.0, -i / 32.0) / 6.283185307179586;  // in the old context
    factors.push_back(static_cast<float>(turns > 4 ? 1
                                         : turns < 1
                                             ? 32
                                             : 1 / ((1 - (turns - 1) / 3) / 32 + (turns - 1) / 3)));
  }
  TinyGguf llama32 = tiny_gguf();
  llama32.u32("llama.attention.key_length", 64)
      .u32("llama.attention.value_length", 64)
      .u32("llama.rope.dimension_count", 64);
  c = read_gguf(llama32.tensor("rope_freqs.weight", {32}, factors));
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::Llama3);
  CHECK(c.rope_scaling.factor == 32);
  CHECK(inverse_frequencies(c) == inverse_frequencies(named_shape("llama3.2-1b")));
  factors[20] *= 1.001f;
  c = read_gguf(llama32.tensor("rope_freqs.weight", {32}, factors));
  CHECK(c.rope_scaling.kind == RopeScaling::Kind::Factors);
  // Twins of one model agree.
  std::string models = std::string(LK_TEST_DATA) + "/golden/models/";
  for (const char* twin : {"tied_gqa.bf16", "biases.f16", "qwen2.f32", "tied_gqa.q8_0",
                           "qwen3.bf16", "gemma3.bf16", "gpt2.bf16"}) {
    std::string name = twin;
    ModelConfig a = config_from_gguf(GgufFile(models + name + ".gguf"));
    ModelConfig b = config_from_folder(models + name.substr(0, name.find('.')));
    a.stored_dtype = b.stored_dtype;
    CHECK(config_to_json(a) == config_to_json(b));
  }
}

TEST_CASE("GGUF metadata: wrong or unsupported is refused by name") {  // G20 to G23
  using Change = std::pair<const char*, TinyGguf>;
  const Change changes[] = {
      {"general.architecture", tiny_gguf().string("general.architecture", "gemma2")},
      {"general.architecture", tiny_gguf().erase("general.architecture")},
      {"general.type", tiny_gguf().string("general.type", "adapter")},
      {"llama.some_new.key: unknown", tiny_gguf().u32("llama.some_new.key", 1)},
      {"llama.embedding_length_out: unknown", tiny_gguf().u32("llama.embedding_length_out", 4)},
      {"split.no", tiny_gguf().u32("split.count", 3)},
      {"llama.block_count", tiny_gguf().u32("llama.block_count", 0)},
      {"llama.block_count: ", tiny_gguf().u32("llama.block_count", 1u << 31)},
      {"llama.block_count", tiny_gguf().u64("llama.block_count", 1ull << 63)},
      {"llama.block_count", tiny_gguf().i32("llama.block_count", -1)},
      {"llama.block_count", tiny_gguf().erase("llama.block_count")},
      {"llama.block_count", tiny_gguf().string("llama.block_count", "1")},
      {"llama.attention.head_count", tiny_gguf().u32("llama.attention.head_count", 0)},
      {"llama.attention.head_count", tiny_gguf().u32("llama.attention.head_count", 3)},
      {"llama.attention.head_count_kv: ", tiny_gguf().u32("llama.attention.head_count_kv", 3)},
      {"llama.attention.head_count_kv: ", tiny_gguf()
                                              .u32("llama.attention.head_count", 4)
                                              .u32("llama.attention.head_count_kv", 3)
                                              .u32("llama.rope.dimension_count", 2)},
      {"llama.attention.head_count_kv", tiny_gguf().u32("llama.attention.head_count_kv", 0)},
      {"llama.rope.dimension_count", tiny_gguf().u32("llama.rope.dimension_count", 8)},
      {"llama.rope.dimension_count", tiny_gguf().u32("llama.rope.dimension_count", 2)},
      {"llama.attention.value_length", tiny_gguf().u32("llama.attention.value_length", 8)},
      {"llama.vocab_size", tiny_gguf().u32("llama.vocab_size", 7)},
      {"tokenizer.ggml.tokens", tiny_gguf().strings("tokenizer.ggml.tokens", {"a", "b"})},
      {"token_embd.weight", tiny_gguf().drop("token_embd.weight")},
      {"token_embd.weight", tiny_gguf().tensor("token_embd.weight", {48}, std::vector<float>(48))},
      {"llama.attention.layer_norm_rms_epsilon: ",
       tiny_gguf().f32("llama.attention.layer_norm_rms_epsilon", 0)},
      {"epsilon", tiny_gguf().erase("llama.attention.layer_norm_rms_epsilon")},
      {"llama.rope.freq_base: ", tiny_gguf().f32("llama.rope.freq_base", 0)},
      {"llama.rope.freq_base: ",
       tiny_gguf().f32("llama.rope.freq_base", std::numeric_limits<float>::infinity())},
      {"llama.rope.freq_base: ",
       tiny_gguf().f32("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN())},
      {"llama.rope.scaling.type", tiny_gguf().string("llama.rope.scaling.type", "yarn")},
      {"llama.rope.scale_linear: beside",
       tiny_gguf().f32("llama.rope.scaling.factor", 2).f32("llama.rope.scale_linear", 2)},
      {"rope_freqs.weight", tiny_gguf().tensor("rope_freqs.weight", {3}, {1, 1, 1})},
      {"rope_freqs.weight: 0", tiny_gguf().tensor("rope_freqs.weight", {2}, {1, 0})},
      {"rope_freqs.weight", tiny_gguf()
                                .tensor("rope_freqs.weight", {2}, {1, 2})
                                .string("llama.rope.scaling.type", "linear")
                                .f32("llama.rope.scaling.factor", 2)},
      {"llama.attention.sliding_window: ",
       tiny_gguf().u32("llama.attention.sliding_window", 1u << 30)},
      {"llama.attention.sliding_window_pattern",
       tiny_gguf().u32("llama.attention.sliding_window_pattern", 2)},
      {"llama.expert_count", tiny_gguf().u32("llama.expert_count", 8)},
      {"llama.nextn_predict_layers", tiny_gguf().u32("llama.nextn_predict_layers", 1)},
      {"llama.attention.key_length_swa", tiny_gguf().u32("llama.attention.key_length_swa", 2)},
      {"llama.rope.dimension_count_swa", tiny_gguf().u32("llama.rope.dimension_count_swa", 2)},
      {"llama.rope.dimension_sections", tiny_gguf().u32("llama.rope.dimension_sections", 2)},
      {"llama.attention.causal", tiny_gguf().boolean("llama.attention.causal", false)},
      {"llama.logit_scale", tiny_gguf().f32("llama.logit_scale", 0.5f)},
      {"llama.attention.scale", tiny_gguf().f32("llama.attention.scale", 0.1f)},
      {"llama.final_logit_softcapping", tiny_gguf().f32("llama.final_logit_softcapping", 30)},
      {"llama.embedding_length: ",
       tiny_gguf().u32("llama.embedding_length", 1u << 30).u32("llama.attention.key_length", 4)},
      {"llama.feed_forward_length: ", tiny_gguf().u32("llama.feed_forward_length", 1u << 30)},
      {"llama.context_length: ", tiny_gguf().u32("llama.context_length", 1u << 30)},
      {"llama.embedding_length / llama.attention.head_count: 5",
       tiny_gguf().u32("llama.embedding_length", 10).u32("llama.rope.dimension_count", 5)},
      {"llama.attention.key_length: 5",
       tiny_gguf().u32("llama.attention.key_length", 5).u32("llama.rope.dimension_count", 5)},
      {"llama.rope.scaling.factor: ", tiny_gguf().f32("llama.rope.scaling.factor", -1)},
      {"llama.rope.scale_linear: ", tiny_gguf().f32("llama.rope.scale_linear", -1)},
      {"tokenizer.ggml.eos_token_id: 6", tiny_gguf().u32("tokenizer.ggml.eos_token_id", 6)},
  };
  for (const auto& [word, builder] : changes) {
    std::string message = gguf_refusal(builder);
    CHECK_MESSAGE((mentions(message, word) && mentions(message, ".gguf")), word, " gave: '",
                  message, "'");
  }
  ModelConfig c = read_gguf(tiny_gguf().u32("llama.attention.sliding_window", 64));
  CHECK(c.architecture == "mistral");
  CHECK((c.window == 64 && c.is_local(0)));
  CHECK(gguf_refusal(tiny_gguf().f32("llama.attention.scale", 0.5f)) == "");  // 1 / sqrt(4)
}

TEST_CASE("rotary frequencies and table") {
  ModelConfig c = named_shape("smollm2-135m");
  std::vector<double> f = inverse_frequencies(c);
  REQUIRE(f.size() == 32);
  for (std::size_t i = 0; i < f.size(); ++i) {
    double exact = std::pow(100000.0, -2.0 * static_cast<double>(i) / 64);
    CHECK(std::abs(f[i] - exact) <= 2 * 0x1p-23 * exact);
  }
  c = named_shape("llama3.2-1b");
  f = inverse_frequencies(c);
  CHECK(f[0] == 1.0);                                                                  // kept
  CHECK(f[31] == doctest::Approx(std::pow(500000.0, -62.0 / 64) / 32).epsilon(1e-6));  // stretched
  // The factors that GGUF stores for the same rule give the same frequencies.
  std::string models = std::string(LK_TEST_DATA) + "/golden/models/";
  std::vector<double> rule = inverse_frequencies(config_from_folder(models + "llama3_rope"));
  std::vector<double> factors =
      inverse_frequencies(config_from_gguf(GgufFile(models + "llama3_rope.bf16.gguf")));
  REQUIRE(rule.size() == factors.size());
  for (std::size_t i = 0; i < rule.size(); ++i)
    CHECK(std::abs(rule[i] - factors[i]) <= 8 * 0x1p-24 * rule[i]);

  auto backend = make_cpu_backend();
  c = named_shape("smollm2-135m");
  const std::int64_t P = 300, D = c.head_dim;
  std::vector<double> single = to_host_f64(rope_table(*backend, c, P));
  Tensor table = rope_table(*backend, c, P, DType::F64);
  CHECK(table.shape() == Shape{P, D});
  std::vector<double> exact = to_host_f64(table);
  f = inverse_frequencies(c);
  for (std::int64_t p = 0; p < P; ++p) {
    for (std::int64_t i = 0; i < D / 2; ++i) {
      double angle = static_cast<float>(p) * static_cast<float>(f[static_cast<std::size_t>(i)]);
      std::size_t at = static_cast<std::size_t>(p * D + i);
      REQUIRE(exact[at] == std::cos(angle));
      REQUIRE(exact[at + static_cast<std::size_t>(D / 2)] == std::sin(angle));
      REQUIRE(single[at] == static_cast<float>(std::cos(angle)));
    }
  }
}

TEST_CASE("the rotary table is transformers' to the last bits, up to position 8,191") {
  auto backend = make_cpu_backend();
  SafetensorsFile golden(std::string(LK_TEST_DATA) + "/golden/models/rope.safetensors");
  const std::int64_t positions[] = {0, 1, 2, 77, 1000, 4095, 8191};
  for (const char* name : {"smollm2-135m", "llama2-7b", "llama3.2-1b"}) {
    ModelConfig c = named_shape(name);
    const std::int64_t half = c.head_dim / 2;
    std::vector<float> table = to_host<float>(rope_table(*backend, c, 8192));
    std::vector<float> cosines(static_cast<std::size_t>(7 * half)), sines(cosines.size());
    golden.read_rows(concat(name, ".cos"), 0, 7, cosines.data());
    golden.read_rows(concat(name, ".sin"), 0, 7, sines.data());
    double worst = 0;
    for (std::int64_t p = 0; p < 7; ++p) {
      for (std::int64_t i = 0; i < half; ++i) {
        const float* row = table.data() + positions[p] * c.head_dim;
        std::size_t at = static_cast<std::size_t>(p * half + i);
        worst = std::max({worst, std::abs(static_cast<double>(row[i]) - cosines[at]),
                          std::abs(static_cast<double>(row[half + i]) - sines[at])});
      }
    }
    CHECK_MESSAGE(worst <= 0x1p-23, name, ": ", worst);  // a cosine of theirs may be an ulp off
  }
}

TEST_CASE("a name on the hub is the folder of its revision in the hub's cache") {
  const test::ScratchFolder f;
  const std::string home = f.file("home"), own = home + "/hub/models--org--Model-1.5B",
                    commit(40, 'a'), other(40, 'b');
  for (const std::string& folder : {own + "/snapshots/" + commit, own + "/snapshots/" + other,
                                    own + "/refs/pr", home + "/elsewhere"})
    std::filesystem::create_directories(folder);
  std::ofstream(own + "/refs/main") << commit;
  std::ofstream(own + "/refs/pr/1") << other << "\n";
  std::ofstream(own + "/refs/gone") << std::string(40, 'c');
  std::ofstream(own + "/refs/out") << "../../../elsewhere";
  std::map<std::string, std::string> set{{"HF_HOME", home}, {"HOME", "/nowhere"}};
  const auto variable = [&](const char* name) {
    const auto found = set.find(name);
    return found == set.end() ? nullptr : found->second.c_str();
  };
  const auto path = [&](const std::string& name) { return path_of_model(name, variable); };
  const std::string first = own + "/snapshots/" + commit, second = own + "/snapshots/" + other;
  CHECK(path("org/Model-1.5B") == first);
  CHECK(path("org/Model-1.5B@main") == first);
  CHECK(path("org/Model-1.5B@pr/1") == second);
  CHECK(path("org/Model-1.5B@" + other) == second);
  for (const std::string& name : std::vector<std::string>{
           "org/Model", "org/Model-1.5B@v2", "org/Model-1.5B@gone", "org/Model-1.5B@out",
           "org/Model-1.5B@", "org/Model-1.5B@../snapshots/" + other, "Model-1.5B", ""})
    CHECK(path(name) == name);
  CHECK(path(home) == home);  // what is there is itself
  set["HF_HUB_CACHE"] = home;
  CHECK(path("org/Model-1.5B") == "org/Model-1.5B");
  CHECK(hub_cache_folder(variable) == home);
  set = {{"HOME", "/me"}, {"HF_HOME", "~/models"}};
  CHECK(hub_cache_folder(variable) == "/me/models/hub");
  set = {{"HOME", "/me"}};
  CHECK(hub_cache_folder(variable) == "/me/.cache/huggingface/hub");
  set["XDG_CACHE_HOME"] = "/cache";
  CHECK(hub_cache_folder(variable) == "/cache/huggingface/hub");
}

TEST_CASE(
    "a GGUF file names its source, and a model that it was made of only where that is itself") {
  const test::ScratchFolder f;
  auto name_in = [&](const std::vector<std::pair<std::string, std::string>>& keys) {
    TinyGguf file = tiny_gguf();
    for (const auto& [key, value] : keys) file.string(key, value);
    file.write(f.file("m.gguf"));
    return hub_name(ModelFile(f.file("m.gguf"))).name;
  };
  const std::string hub = "https://huggingface.co/", source = "general.source.repo_url",
                    parent = "general.base_model.0.repo_url", own = "general.name";
  CHECK(name_in({}).empty());
  CHECK(name_in({{"general.source.huggingface.repository", "org/Model"}}) == "org/Model");
  CHECK(name_in({{source, hub + "org/Model"}, {parent, hub + "org/Parent"}}) == "org/Model");
  CHECK(name_in({{source, hub + "org/Model/tree/main"}}) == "org/Model");
  CHECK(name_in({{source, "https://github.com/org/Model"}}).empty());
  CHECK(name_in({{parent, hub + "org/Small-1B-Chat"}}) == "org/Small-1B-Chat");
  CHECK(name_in({{parent, hub + "org/Small-1B-Chat"}, {own, "Small 1B chat"}}) ==
        "org/Small-1B-Chat");
  CHECK(name_in({{parent, hub + "org/Small-1B"}, {own, "Small 1B Chat"}}).empty());
}

}  // namespace lk
