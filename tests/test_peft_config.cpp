// adapter_config.json read as PEFT means it: which modules, which rank and alpha each, and what is
// refused. What PEFT does is in its tuners/tuners_utils.py (check_target_module_exists) and
// utils/other.py (get_pattern_key).
#include "harness.h"
#include "io/json.h"
#include "lora/peft_config.h"
#include "scratch_folder.h"

using namespace lk;
using namespace lk::test;

namespace {

PeftConfig read(const std::string& text) {
  ScratchFolder scratch;
  return PeftConfig(scratch.write("adapter_config.json", text));
}

// A plain adapter's config with some keys changed.
PeftConfig with(const Json& changes) {
  Json config = {{"peft_type", "LORA"}, {"r", 8}, {"lora_alpha", 16}};
  config["target_modules"] = {"q_proj", "v_proj"};
  config.update(changes);
  return read(config.dump());
}

std::string path(int layer, const std::string& module) {
  return concat("model.layers.", layer, ".", module);
}

constexpr const char* kQ = "self_attn.q_proj";
constexpr const char* kV = "self_attn.v_proj";
constexpr const char* kUp = "mlp.up_proj";

void check_refused(const Json& changes, const char* part) {
  CAPTURE(changes.dump());
  CHECK_THROWS_WITH_AS(with(changes), doctest::Contains(part), InputError);
}

}  // namespace

TEST_CASE("target_modules is a list of names or one pattern for whole paths") {
  PeftConfig names = with({{"target_modules", {"q_proj", "layers.1.mlp.up_proj"}}});
  CHECK(names.selects(path(0, kQ)));
  CHECK(!names.selects(path(0, kUp)));
  CHECK(names.selects(path(1, kUp)));
  CHECK(!names.selects(path(11, kUp)));
  PeftConfig pattern = with({{"target_modules", R"(.*\.(?P<layer>[0-1])\..*(q|v)_proj)"}});
  CHECK(pattern.selects(path(1, kV)));
  CHECK(!pattern.selects(path(2, kV)));
  CHECK(!pattern.selects(path(1, kUp)));
  CHECK(!with({{"target_modules", "q_proj"}}).selects(path(0, kQ)));  // not the whole path
  CHECK(with({{"target_modules", R"(model\.(?!layers\.0\.).*q_proj)"}}).selects(path(1, kQ)));
  CHECK(!with({{"target_modules", R"(model\.(?!layers\.0\.).*q_proj)"}}).selects(path(0, kQ)));
  CHECK(with({{"target_modules", "all-linear"}}).selects(path(3, kUp)));
  // None are those of the families: q_proj and v_proj, or c_attn.
  for (const PeftConfig& none :
       {with({{"target_modules", nullptr}}), read(R"({"peft_type": "LORA"})")}) {
    CHECK((none.selects(path(3, kQ)) && none.selects(path(3, kV))));
    CHECK(none.selects("transformer.h.1.attn.c_attn"));
    CHECK(!none.selects(path(3, kUp)));
    CHECK(!none.selects("transformer.h.1.attn.c_proj"));
  }
  CHECK(with({{"target_modules", nullptr}, {"layers_to_transform", {1}}}).selects(path(1, kV)));
  CHECK(!with({{"target_modules", nullptr}, {"layers_to_transform", {1}}}).selects(path(0, kV)));
}

TEST_CASE("exclude_modules comes first, as names or as a pattern") {
  PeftConfig names = with({{"exclude_modules", {"layers.0.self_attn.q_proj"}}});
  CHECK(!names.selects(path(0, kQ)));
  CHECK(names.selects(path(0, kV)));
  CHECK(names.selects(path(1, kQ)));
  PeftConfig pattern = with({{"exclude_modules", R"(.*\.[0-4]\..*)"}});
  CHECK(!pattern.selects(path(4, kQ)));
  CHECK(pattern.selects(path(5, kQ)));
}

TEST_CASE("layers_to_transform limits names to layers, but not a whole path") {
  PeftConfig one = with({{"layers_to_transform", 1}});
  CHECK(one.selects(path(1, kQ)));
  CHECK(!one.selects(path(0, kQ)));
  CHECK(!one.selects(path(11, kQ)));
  PeftConfig some =
      with({{"layers_to_transform", {0, 11}}, {"target_modules", {"q_proj", path(2, kV)}}});
  CHECK(some.selects(path(0, kQ)));
  CHECK(some.selects(path(11, kQ)));
  CHECK(!some.selects(path(2, kQ)));
  CHECK(some.selects(path(2, kV)));
  CHECK(with({{"layers_to_transform", Json::array()}}).selects(path(5, kQ)));
  PeftConfig gpt2 = with({{"layers_to_transform", {1}}, {"target_modules", {"c_attn"}}});
  CHECK(gpt2.selects("transformer.h.1.attn.c_attn"));
  CHECK(!gpt2.selects("transformer.h.0.attn.c_attn"));
  PeftConfig listed = with({{"layers_to_transform", {1}}, {"layers_pattern", "layers"}});
  CHECK(listed.selects(path(1, kQ)));
  CHECK(!listed.selects(path(0, kQ)));
  PeftConfig other = with({{"layers_to_transform", {1}}, {"layers_pattern", {"h", "blocks"}}});
  CHECK(!other.selects(path(1, kQ)));
  CHECK(other.selects("blocks.1.q_proj"));
  // The first number counts: an expert's is another one.
  CHECK(one.selects("model.layers.1.experts.0.q_proj"));
  CHECK(!one.selects("model.layers.0.experts.1.q_proj"));
}

TEST_CASE("the first key of a pattern that matches gives a module's rank and alpha") {
  PeftConfig c = with({{"rank_pattern", {{"v_proj", 2}}}, {"alpha_pattern", {{"q_proj", 64.5}}}});
  CHECK(c.rank_alpha(path(0, kV)) == RankAlpha{2, 16});
  CHECK(c.rank_alpha(path(0, kQ)) == RankAlpha{8, 64.5});
  CHECK(c.rank_alpha(path(0, kUp)) == RankAlpha{8, 16});
  // A key is a regular expression for what follows a dot, or for the whole path.
  const PeftConfig regex = with({{"rank_pattern", {{R"(layers\.[01]\..*_proj)", 3}}}});
  CHECK(regex.rank_alpha(path(1, kQ)).rank == 3);
  CHECK(regex.rank_alpha(path(2, kQ)).rank == 8);
  CHECK(with({{"rank_pattern", {{"proj", 3}}}}).rank_alpha(path(1, kQ)).rank == 8);
  CHECK(with({{"rank_pattern", {{"^" + path(1, kQ), 3}}}}).rank_alpha(path(1, kQ)).rank == 3);
  CHECK(with({{"rank_pattern", {{"q_proj|v_proj", 3}}}}).rank_alpha(path(1, kV)).rank == 3);
  // In the order of the file, whatever the alphabet says.
  for (bool turned : {false, true}) {
    const std::string wide = R"("v_proj": 5)", narrow = R"("layers.1.self_attn.v_proj": 6)";
    const PeftConfig ordered =
        read(concat(R"({"peft_type": "LORA", "rank_pattern": {)", turned ? narrow : wide, ", ",
                    turned ? wide : narrow, "}}"));
    CHECK(ordered.rank_alpha(path(1, kV)).rank == (turned ? 6 : 5));
    CHECK(ordered.rank_alpha(path(0, kV)).rank == 5);
  }
}

TEST_CASE("a byte order mark at the start of the config is skipped") {
  CHECK(read("\xEF\xBB\xBF{\"peft_type\": \"LORA\", \"r\": 3}").shape().rank == 3);
}

TEST_CASE("an initialisation that changes the base on loading is refused, others need nothing") {
  for (const char* init : {"pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga"}) {
    check_refused({{"init_lora_weights", init}}, "init_lora_weights");
    check_refused({{"init_lora_weights", init}}, "path_initial_model_for_weight_conversion");
  }
  check_refused({{"init_lora_weights", "loftq"}, {"loftq_config", {{"loftq_bits", 4}}}},
                "init_lora_weights");
  check_refused({{"init_lora_weights", "something"}}, "init_lora_weights");
  check_refused({{"init_lora_weights", 3}}, "init_lora_weights");
  for (const Json& init : {Json(true), Json(false), Json(nullptr), Json("gaussian"), Json("eva"),
                           Json("orthogonal"), Json("mica")})
    CHECK_NOTHROW(with({{"init_lora_weights", init}}));
}

TEST_CASE("a key that is not known must be off") {
  const std::pair<const char*, Json> on[] = {
      {"use_dora", 1},
      {"lora_bias", true},
      {"bias", "lora_only"},
      {"trainable_token_indices", {{"embed_tokens", {1, 2}}}},
      {"alora_invocation_tokens", {5}},
      {"target_parameters", {"experts.gate_up_proj"}},
      {"megatron_config", {{"hidden_size", 8}}},
      {"layer_replication", {{0, 2}, {1, 3}}},
      {"use_qalora", true},
      {"use_bdlora", {{"target_modules_bd_a", {"q_proj"}}}},
      {"arrow_config", {{"top_k", 3}}},
      {"kasa_config", {{"beta", 1}}},
      {"velora_config", {{"num_groups", 3}}},
      {"monteclora_config", {{"num_samples", 3}}},
      {"of_a_later_peft", 0.5},
  };
  for (const auto& [key, value] : on) {
    Json off = {{key, Json()}};
    if (std::string(key) != "bias") CHECK_NOTHROW(with(off));
    check_refused({{key, value}}, key);
  }
  CHECK_NOTHROW(with({{"eva_config", {{"rho", 2.0}}},
                      {"runtime_config", {{"ephemeral_gpu_offload", false}}},
                      {"fan_in_fan_out", true},
                      {"qalora_group_size", 16},
                      {"megatron_core", "megatron.core"},
                      {"of_a_later_peft", false}}));
}

TEST_CASE("what PEFT refuses or another reader would take differently is refused by key") {
  check_refused({{"layers_pattern", "layers"}}, "layers_pattern");
  check_refused({{"layers_to_transform", 1}, {"target_modules", ".*q_proj"}},
                "layers_to_transform");
  check_refused({{"layers_to_transform", "1"}}, "layers_to_transform");
  check_refused({{"layers_to_transform", {-1}}}, "layers_to_transform");
  check_refused({{"rank_pattern", {{"q_proj", 0}}}}, "rank_pattern");
  check_refused({{"rank_pattern", {{"q_proj", 2.5}}}}, "rank_pattern");
  check_refused({{"rank_pattern", {"q_proj"}}}, "rank_pattern");
  check_refused({{"alpha_pattern", {{"q_proj", "2"}}}}, "alpha_pattern");
  check_refused({{"alpha_pattern", {{"q_proj", -2}}}}, "alpha_pattern");
  check_refused({{"target_modules", {1, 2}}}, "target_modules");
  check_refused({{"exclude_modules", 7}}, "exclude_modules");
  for (const char* pattern :
       {"(", ")", "a)(b", "*q", "[", "[]a]", "q\\", "(?i)Q", "(?<=a)b", "(a)\\1", "\\Aq", "q\\Z",
        "a*+", "a**", "a{2}{3}", "[[:alpha:]]", "a{,3}"})
    check_refused({{"target_modules", pattern}}, "target_modules");
  check_refused({{"rank_pattern", {{"a)|(b", 2}}}}, "rank_pattern");
  check_refused({{"target_modules", std::string(3000, 'a')}}, "too long");
}

TEST_CASE("a hostile pattern takes no time to speak of") {
  PeftConfig c = with({{"target_modules", "(((.*)*)*)*x"}});
  CHECK(!c.selects(path(1, kQ) + std::string(200, 'q')));
}
