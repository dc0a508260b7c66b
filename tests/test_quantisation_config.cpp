// What config.json says of a folder's quantisation: what is read, what is refused by name, and that the
// tensors agree with it.
#include <algorithm>
#include <cstring>
#include <tuple>

#include "gptq_tiny.h"
#include "harness.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/sha256.h"
#include "modelfile/fingerprint.h"
#include "modelfile/model_file.h"
#include "modelfile/stored_quantised.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";
const std::string kQuantised = kGolden + "quantised/";

}  // namespace

TEST_CASE("configs of quantisations that are not read are refused by name") {
  auto refused = [](const char* json, const char* part) {
    CHECK_THROWS_WITH_AS(parse_quantisation(Json::parse(json), "config.json"),
                         doctest::Contains(part), InputError);
  };
  CHECK(parse_quantisation(Json::parse("{}"), "c").method == QuantisationConfig::Method::None);
  refused(R"({"quantization_config": {"quant_method": "hqq"}})", "quant_method \"hqq\"");
  refused(R"({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}})",
          "LLM.int8");
  refused(R"({"quantization_config": {"quant_method": "gptq", "bits": 3}})", "4 bits");
  refused(R"({"quantization_config": {"quant_method": "awq", "version": "gemv"}})", "gemv");
  refused(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}})",
          "weight_block_size");
  refused(R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "dense"}})",
          "format \"dense\"");
  CHECK(parse_quantisation(Json::parse(R"({"quantization_config": {"load_in_4bit": true}})"), "c")
            .method == QuantisationConfig::Method::Bitsandbytes);
}

TEST_CASE("configs as the packages write them are read") {
  using Method = QuantisationConfig::Method;
  auto parsed = [](const std::string& json) {
    return parse_quantisation(Json::parse("{\"quantization_config\": " + json + "}"), "c");
  };
  const std::string integers =
      R"("bits": 4, "tokenizer": null, "dataset": null, "group_size": 128, "damp_percent": 0.1,
         "desc_act": false, "act_group_aware": true, "sym": true, "true_sequential": true,
         "meta": null, "backend": "auto", "model_seqlen": null, "block_name_to_quantize": null,
         "batch_size": 1, "pad_token_id": null, "cache_block_outputs": true)";
  CHECK(parsed(R"({"quant_method": "gptq", "format": "gptq", "checkpoint_format": "gptq", )" +
               integers + "}")
            .scales == std::vector<SharedScale>{{1, 128}});
  CHECK(parsed(R"({"quant_method": "awq", "format": "gemm", "version": "gemm", "zero_point": true,
                   "modules_to_not_convert": null, )" +
               integers + "}")
            .method == Method::Awq);
  CHECK(parsed(R"({"quant_method": "gptq", "format": "gptq_v2", "bits": 4})").gptq_zero_shift == 0);
  CHECK(parsed(R"({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq",
                   "data_type": "int", "bits": 4, "group_size": -1, "iters": 200,
                   "autoround_version": "0.12"})")
            .scales == std::vector<SharedScale>{{1, 0}});
  CHECK(parsed(R"({"quant_method": "fp8", "modules_to_not_convert": null, "dequantize": false,
                   "modules_to_convert": null, "activation_scheme": "dynamic", "fmt": "e4m3",
                   "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "expert_dtype": "fp8"})")
            .exponents);
  CHECK(parsed(R"({"quant_method": "fp8", "weight_block_size": null})").scales ==
        std::vector<SharedScale>{{0, 0}});
  CHECK(
      parsed(R"({"quant_method": "compressed-tensors", "format": "mixed-precision", "version": "1",
                   "sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": null,
                   "ignore": ["lm_head"], "config_groups": {
                     "a": {"targets": ["Linear"], "format": "pack-quantized", "weights": {
                       "num_bits": 4, "type": "int", "symmetric": false, "strategy": "group",
                       "group_size": 32, "dynamic": false, "actorder": "static"}},
                     "b": {"targets": ["Linear"], "format": "float-quantized", "weights": {
                       "num_bits": 8, "type": "float", "strategy": "channel"}}}})")
          .scales == std::vector<SharedScale>{{1, 32}, {1, 0}});
}

TEST_CASE("a key of quantization_config that may change the weights is refused by name") {
  auto refused = [](const std::string& json, const char* part) {
    CHECK_THROWS_WITH_AS(
        parse_quantisation(Json::parse("{\"quantization_config\": " + json + "}"), "c"),
        doctest::Contains(part), InputError);
  };
  refused(R"({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"})", "rotation");
  refused(R"({"quant_method": "gptq", "bits": 4, "is_marlin_format": true})", "is_marlin_format");
  refused(R"({"quant_method": "gptq", "format": "gptq_v2", "checkpoint_format": "gptq"})",
          "but checkpoint_format is gptq");
  refused(R"({"quant_method": "awq", "w_bit": 3})", "w_bit");
  refused(R"({"quant_method": "awq", "format": "gemv", "version": "gemm"})", "format \"gemv\"");
  refused(R"({"quant_method": "awq", "backend": "llm-awq"})", "llm-awq");
  refused(R"({"quant_method": "auto-round", "packing_format": "auto_round"})", "packing_format");
  refused(R"({"quant_method": "fp8", "scale_fmt": "e5"})", "scale_fmt");
  const std::string compressed =
      R"({"quant_method": "compressed-tensors", "format": "float-quantized", )";
  refused(compressed + R"("transform_config": {"config_groups": {"R1": {}}}})", "transform_config");
  refused(compressed + R"("sparsity_config": {"format": "sparse-24-bitmask"}})",
          "sparsity_config.format");
  refused(compressed + R"("config_groups": {"FP8": ["Linear"]}})", "is not an object");
  auto weights = [&](const char* json, const char* part) {
    refused(compressed + R"("config_groups": {"g": {"weights": )" + json + "}}}", part);
  };
  weights("[]", "weights is not an object");
  weights(R"({"num_bits": 8, "type": "int"})", "type int in 8 bits");
  weights(R"({"num_bits": 8, "type": "float", "symmetric": false})", "symmetric");
  weights(R"({"num_bits": 8, "type": "float", "dynamic": true})", "dynamic");
  weights(R"({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]})",
          "block_structure");
  weights(R"({"num_bits": 4, "type": "int", "group_size": 32, "actorder": "group"})", "actorder");
  CHECK_THROWS_WITH_AS(
      parse_quantisation(Json::parse(R"({"quantization": {}, "quantization_config": {"bits": 4}})"),
                         "c"),
      doctest::Contains("MLX"), InputError);
}

TEST_CASE("tensors that contradict config.json, or that nobody reads, are refused by name") {
  using Method = QuantisationConfig::Method;
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  auto refused = [&](const std::string& base, const Shape& shape, const QuantisationConfig& config,
                     const char* part) {
    CHECK_THROWS_WITH_AS(find_stored_matrix(file, names, base + ".weight", shape, config),
                         doctest::Contains(part), InputError);
  };
  // The file's groups have 16 columns: of 64 columns, three groups of 24 would be cut.
  auto groups = [](Method method, std::int64_t cols) {
    QuantisationConfig config{method};
    config.scales = {{1, cols}};
    return config;
  };
  refused("awq", {24, 64}, groups(Method::Awq, 32),
          "groups of 32 columns; if the weights are right, write their group_size there");
  refused("awq", {24, 64}, groups(Method::Awq, 20), "do not divide 64");
  refused("pack_zeros", {24, 64}, groups(Method::CompressedTensors, 0), "groups of 64 columns");
  CHECK(find_stored_matrix(file, names, "awq.weight", {24, 64}, groups(Method::Awq, 16)));
  refused("fp8_rows", {12, 40}, {.method = Method::Fp8, .scales = {{128, 128}}},
          "fp8_rows.weight_scale: has shape (12,1), (1,1) for 128 rows x 128 columns");
  refused("fp8_f32", {130, 200}, {.method = Method::Gptq}, "quant_method is gptq");
  refused("pack_symmetric", {24, 64}, {.method = Method::CompressedTensors, .zero_points = true},
          "weight_zero_point: is missing");
  refused("pack_zeros", {24, 64}, {.method = Method::CompressedTensors, .zero_points = false},
          "weight_zero_point: stands there, but config.json says symmetric: true");
  const auto stored = find_stored_matrix(file, names, "awq.weight", {24, 64}, {Method::Awq});
  REQUIRE(stored);
  CHECK_THROWS_WITH_AS(check_companions(file, names, "awq.weight", &*stored),
                       doctest::Contains("awq.expected: is unknown beside awq.qweight"),
                       InputError);
  CHECK_THROWS_WITH_AS(check_companions(file, names, "awq.weight", nullptr),
                       doctest::Contains("of no way of quantising"), InputError);
}

TEST_CASE("config.json may not say of a folder what its tensors deny, though no number changes") {
  const std::string bnb = kQuantised + "bnb/";
  const Json config = read_json(bnb + "config.json");
  const std::string weights = read_file(bnb + "model.safetensors", 1 << 24);
  // The message with which a folder of these tensors is refused; empty if it is not.
  auto refusal = [](const std::string& tensors, const Json& json) -> std::string {
    const ScratchFolder folder;
    folder.write("config.json", json.dump());
    folder.write("model.safetensors", tensors);
    try {
      ModelFile(folder.path()).reader();
    } catch (const InputError& e) {
      CHECK(std::string(e.what()).starts_with(folder.path()));
      return e.what();
    }
    return "";
  };
  auto with = [&](const char* key, const Json& value) {
    Json json = config;
    json["quantization_config"][key] = value;
    return refusal(weights, json);
  };
  auto contains = [](const std::string& message, const std::string& part) {
    CHECK_MESSAGE(message.find(part) != std::string::npos, message, " lacks ", part);
  };
  const std::string first = "but tensor model.layers.0.";
  for (const auto& [key, value, claim] :
       {std::tuple<const char*, Json, const char*>{"bnb_4bit_quant_type", "fp4", "is fp4, "},
        {"bnb_4bit_use_double_quant", false, "is false, "},
        {"llm_int8_skip_modules", Json::array({"lm_head", "model.layers.0.mlp"}),
         "has \"model.layers.0.mlp\""},
        {"llm_int8_skip_modules", Json::array({"model.layers.0.mlp.up_proj"}),
         "has \"model.layers.0.mlp.up_proj\" stay dense"},
        {"llm_int8_skip_modules", Json::array({"q_proj"}), "has \"q_proj\" stay dense"}}) {
    const std::string message = with(key, value);
    contains(message, concat("config.json: quantization_config: ", key, " ", claim));
    contains(message, first);
    contains(message, "model.safetensors is ");
    contains(message, "if the weights are right, write that there");
  }
  contains(with("llm_int8_skip_modules", "lm_head"), "a list of modules is expected");
  // What writers leave: the head, modules of other models, no list, and parts of names.
  for (const Json& names :
       {Json::array({"lm_head"}), Json{"visual", "model.layers.99", "router"}, Json(nullptr),
        Json::array(), Json{"proj", "layers.0", "model.layers.0.mlp.up", ""}})
    CHECK(with("llm_int8_skip_modules", names) == "");
  Json silent = config;
  silent["quantization_config"] = {{"load_in_4bit", true}};
  CHECK(refusal(weights, silent) == "");

  // A dense folder with a method.
  const std::string tiny = kGolden + "peft/tiny/";
  const std::string dense = read_file(tiny + "model.safetensors", 1 << 24);
  auto of_dense = [&](const char* quantisation) {
    Json json = read_json(tiny + "config.json");
    json["quantization_config"] = Json::parse(quantisation);
    return refusal(dense, json);
  };
  for (const char* method : {"awq", "gptq", "fp8"}) {
    const std::string message = of_dense(concat(R"({"quant_method": ")", method, "\"}").c_str());
    contains(message, concat("config.json: quantization_config: quant_method is ", method, ", "));
    contains(message, "is dense, and so is every other");
  }
  contains(of_dense(R"({"load_in_4bit": true})"), "quant_method is bitsandbytes, ");
  const std::string groups = R"({"quant_method": "compressed-tensors", "format": "float-quantized",
      "config_groups": {"g": {"targets": ["Linear"], )";
  contains(of_dense((groups + R"("weights": {"num_bits": 8, "type": "float"}}}})").c_str()),
           "quant_method is compressed-tensors, ");
  // Activations or a cache alone, and weights that were dequantised.
  CHECK(of_dense((groups + R"("input_activations": {"num_bits": 8}}}})").c_str()) == "");
  CHECK(of_dense(R"({"quant_method": "fp8", "dequantize": true})") == "");
}

TEST_CASE("each format's list of dense modules names them as its readers do") {
  auto names = [](const std::string& json, const std::string& path) {
    const QuantisationConfig config =
        parse_quantisation(Json::parse("{\"quantization_config\": " + json + "}"), "c");
    return std::any_of(config.dense.begin(), config.dense.end(),
                       [&](const DenseModule& dense) { return dense.names(path); });
  };
  const std::string awq =
                        R"({"quant_method": "awq", "modules_to_not_convert": ["gate", "lm_head"]})",
                    fp8 = R"({"quant_method": "fp8", "modules_to_not_convert": ["a.b"],
                              "ignored_layers": ["c.d"]})",
                    compressed = R"({"quant_method": "compressed-tensors",
                      "format": "pack-quantized", "ignore": ["lm_head", "a.b", "re:.*q_proj", "re:c[.]d"]})";
  CHECK(names(awq, "layers.0.gate"));
  CHECK(!names(awq, "layers.0.gate_proj"));
  CHECK((names(fp8, "a.b.c") && !names(fp8, "c.d.e") && names(fp8, "c.d")));
  CHECK((names(compressed, "a.b") && names(compressed, "lm_head")));
  CHECK((!names(compressed, "a.b.c") && !names(compressed, "a.k_proj")));
  // Expressions need not reach to the end of a path, but begin where it begins.
  CHECK(
      (names(compressed, "a.q_proj") && names(compressed, "c.d.e") && !names(compressed, "a.c.d")));
  CHECK(!names(R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
                   "ignore": ["re:(?i)a"]})",
               "a"));  // nothing that we read
  CHECK(names(R"({"quant_method": "gptq", "bits": 4, "lm_head": false})", "lm_head"));
  CHECK(!names(R"({"quant_method": "gptq", "bits": 4, "lm_head": true})", "lm_head"));
}

TEST_CASE("a bias of zeros beside a matrix of GPTQ is none, and another one is refused") {
  const auto refusal = [&](char bias) -> std::string {
    const ScratchFolder folder;
    write_gptq_tiny(folder.path(), {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 16}},
                    bias);
    try {
      ModelFile(folder.path()).reader();
    } catch (const InputError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(refusal(0) == "");
  CHECK(refusal(1).find(kGptqModule + ".bias is unknown") != std::string::npos);
}

TEST_CASE("groups of which some have zero points say by their targets which matrices do") {
  auto parsed = [](const std::string& symmetric, const std::string& asymmetric) {
    auto group = [](const std::string& targets, const char* is_symmetric) {
      return concat(
          R"({"targets": )", targets,
          R"(, "weights": {"num_bits": 4, "type": "int", "group_size": 16, "symmetric": )",
          is_symmetric, "}}");
    };
    return parse_quantisation(
        Json::parse(concat(
            R"({"quantization_config": {"quant_method": "compressed-tensors",
                "format": "pack-quantized", "config_groups": {"a": )",
            group(symmetric, "true"), R"(, "b": )", group(asymmetric, "false"), "}}}")),
        "config.json");
  };
  // A path before an expression, that before a class; expressions need not reach to the end.
  const QuantisationConfig config =
      parsed(R"(["Linear", "a.mlp.up_proj", "re:z.*"])", R"(["re:.*mlp", "re:a[.]out$"])");
  CHECK(config.has_zero_points("a.mlp.down_proj") == true);
  CHECK(config.has_zero_points("a.mlp.up_proj") == false);
  CHECK(config.has_zero_points("a.q_proj") == false);
  CHECK(config.has_zero_points("a.out") == true);
  CHECK(config.has_zero_points("a.output") == false);
  CHECK(config.has_zero_points("z.mlp") == true);  // ".*" sorts before "z"
  CHECK_THROWS_WITH_AS(parsed(R"(["Linear"])", R"(["re:(?i)a"])"),
                       doctest::Contains("config_groups: targets"), InputError);
  CHECK_THROWS_WITH_AS(parsed("[7]", "[]"), doctest::Contains("a list of modules is expected"),
                       InputError);

  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  auto find = [&](const char* base, const QuantisationConfig& of) {
    return find_stored_matrix(file, names, std::string(base) + ".weight", {24, 64}, of);
  };
  const QuantisationConfig right = parsed(R"(["Linear"])", R"(["re:.*_zeros"])"),
                           wrong = parsed(R"(["re:.*_zeros"])", R"(["Linear"])");
  CHECK(find("pack_symmetric", right));
  CHECK(find("pack_zeros", right));
  CHECK_THROWS_WITH_AS(find("pack_symmetric", wrong),
                       doctest::Contains("pack_symmetric.weight_zero_point: is missing"),
                       InputError);
  CHECK_THROWS_WITH_AS(find("pack_zeros", wrong),
                       doctest::Contains("pack_zeros.weight_zero_point: stands there"), InputError);
  CHECK_THROWS_WITH_AS(find("pack_zeros", parsed(R"(["a"])", R"(["b"])")),
                       doctest::Contains("config_groups: no target names pack_zeros"), InputError);
}

TEST_CASE("a fingerprint is of the version of GPTQ too, which only config.json tells") {
  const ScratchFolder folder;
  auto fingerprint = [&](const char* key, const char* format) {
    write_gptq_tiny(folder.path(), {{"quant_method", "gptq"}, {"bits", 4}, {key, format}});
    return model_fingerprint(folder.path());
  };
  const std::string one = fingerprint("checkpoint_format", "gptq");
  CHECK(one == sha256_file(folder.file("model.safetensors")));
  CHECK(fingerprint("format", "gptq") == one);
  const std::string two = fingerprint("checkpoint_format", "gptq_v2");
  CHECK(two != one);
  CHECK(fingerprint("format", "gptq_v2") == two);
  // From the file of its own, too.
  write_gptq_tiny(folder.path(), nullptr);
  folder.write("quantize_config.json", R"({"bits": 4, "checkpoint_format": "gptq_v2"})");
  CHECK(model_fingerprint(folder.path()) == two);
}

TEST_CASE("where config.json says sym, a zero point other than 8 is refused by tensor and key") {
  auto config = [](const std::string& more) {
    return parse_quantisation(
        Json::parse(R"({"quantization_config": {"quant_method": "gptq", "bits": 4)" + more + "}}"),
        "config.json");
  };
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  auto find = [&](const std::string& more) {
    return find_stored_matrix(file, names, "gptq_v1.weight", {24, 64}, config(more));
  };
  CHECK_THROWS_WITH_AS(find(R"(, "sym": true)"),
                       doctest::Contains("tensor gptq_v1.qzeros: has a zero point of "),
                       InputError);
  CHECK_THROWS_WITH_AS(find(R"(, "sym": true)"),
                       doctest::Contains("config.json: quantization_config: sym is true"),
                       InputError);
  CHECK(find(R"(, "sym": false)"));
  CHECK(find(""));
  // Single modules may be otherwise.
  CHECK(find(R"(, "sym": true, "dynamic": {"+:.*": {"sym": false}})"));

  // Symmetric codes: zeros of 8, which version 1 stores as 7.
  const ScratchFolder scratch;
  auto symmetric = [&](std::uint32_t word, const char* format) {
    std::string data(std::size_t{4} * 8 * 1 + 4 * 8 + 4, '\0');  // qweight, scales, qzeros
    std::memcpy(data.data() + 64, &word, sizeof word);
    const Json header = {
        {"x.qweight", {{"dtype", "I32"}, {"shape", {1, 8}}, {"data_offsets", {0, 32}}}},
        {"x.scales", {{"dtype", "F32"}, {"shape", {1, 8}}, {"data_offsets", {32, 64}}}},
        {"x.qzeros", {{"dtype", "I32"}, {"shape", {1, 1}}, {"data_offsets", {64, 68}}}}};
    const std::string text = header.dump();
    const std::uint64_t size = text.size();
    scratch.write("x.safetensors",
                  std::string(reinterpret_cast<const char*>(&size), sizeof size) + text + data);
    const SafetensorsFile x(scratch.file("x.safetensors"));
    return find_stored_matrix(
        x, x.names(), "x.weight", {8, 8},
        config(concat(R"(, "sym": true, "checkpoint_format": ")", format, "\"")));
  };
  CHECK(symmetric(0x77777777, "gptq"));
  CHECK(symmetric(0x88888888, "gptq_v2"));
  CHECK_THROWS_WITH_AS(symmetric(0x88888888, "gptq"), doctest::Contains("has a zero point of 9"),
                       InputError);
  CHECK_THROWS_WITH_AS(symmetric(0x88888887, "gptq_v2"), doctest::Contains("has a zero point of 7"),
                       InputError);
}

TEST_CASE("what config.json says of AWQ's zero points is zero_point, or else sym") {
  const SafetensorsFile file(kQuantised + "formats.safetensors");
  const std::vector<std::string> names = file.names();
  auto find = [&](const std::string& more) {
    const Json json = Json::parse(
        concat(R"({"quantization_config": {"quant_method": "awq", "bits": 4, )", more, "}}"));
    return find_stored_matrix(file, names, "awq.weight", {24, 64},
                              parse_quantisation(json, "config.json"));
  };
  auto refused = [&](const std::string& more, const char* part) {
    CHECK_THROWS_WITH_AS(find(more), doctest::Contains(part), InputError);
  };
  // transformers 5 writes "sym": true of any AWQ folder.
  CHECK(find(R"("sym": true, "zero_point": true)"));
  CHECK(find(R"("zero_point": true)"));
  CHECK(find(R"("sym": false, "zero_point": null)"));
  refused(R"("zero_point": false)", "tensor awq.qzeros: has a zero point of ");
  refused(R"("sym": false, "zero_point": false)", "quantization_config: zero_point is false");
  refused(R"("sym": true)", "quantization_config: sym is true");
  refused(R"("zero_point": "none")", "zero_point");
}

TEST_CASE("what only AutoGPTQ's or AutoAWQ's own file says of a quantisation is read") {
  using Method = QuantisationConfig::Method;
  const ScratchFolder folder;
  CHECK(read_own_quantisation(folder.path()).method == Method::None);
  const std::string awq =
      R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})";
  folder.write("quant_config.json", awq);
  CHECK(read_own_quantisation(folder.path()).method == Method::Awq);
  const auto gptq = [](const ScratchFolder& to, int bits) {
    to.write("quantize_config.json",
             concat(R"({"bits": )", bits, R"(, "group_size": 128, "damp_percent": 0.01,
                    "desc_act": false, "static_groups": false, "sym": true,
                    "true_sequential": true, "model_name_or_path": null,
                    "model_file_base_name": "model"})"));
  };
  gptq(folder, 4);
  CHECK_THROWS_WITH_AS(read_own_quantisation(folder.path()),
                       doctest::Contains("quantize_config.json and quant_config.json"), InputError);
  const ScratchFolder other;
  gptq(other, 4);
  const QuantisationConfig config = read_own_quantisation(other.path());
  CHECK(config.method == Method::Gptq);
  CHECK(config.scales == std::vector<SharedScale>{{1, 128}});
  CHECK(config.where == other.path() + "/quantize_config.json");
  CHECK(config.file == "quantize_config.json");
  gptq(other, 3);
  CHECK_THROWS_WITH_AS(read_own_quantisation(other.path()),
                       doctest::Contains("quantize_config.json: bits"), InputError);
  other.write("quantize_config.json", R"({"bits": 4, "group_size": 32, "q_group_size": 64})");
  CHECK_THROWS_WITH_AS(read_own_quantisation(other.path()), doctest::Contains("q_group_size is 64"),
                       InputError);

  // Beside dense weights nobody asks for it, nor copies it.
  const std::string tiny = kGolden + "peft/tiny/";
  other.write("quantize_config.json", "anything");
  other.write("config.json", read_file(tiny + "config.json", 1 << 20));
  other.write("model.safetensors", read_file(tiny + "model.safetensors", 1 << 24));
  const ModelFile dense(other.path());
  CHECK_NOTHROW(dense.reader());
  for (const auto& [name, content] : dense.side_files()) CHECK(name != "quantize_config.json");
}
