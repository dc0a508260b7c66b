// Would catch: a model's generation_config.json that is ignored, so that a greedy text is another
// than transformers'; and a key that nothing obeys and nobody names.
#include <fstream>

#include "harness.h"
#include "io/json.h"
#include "run/own_sampling.h"
#include "run_program.h"
#include "scratch_folder.h"
#include "tensor/error.h"
#include "text/tokenizer.h"

using namespace lk;
namespace stdfs = std::filesystem;

namespace {

// The tiny model with other files of settings; null: no such file.
struct Model {
  test::ScratchFolder scratch;
  explicit Model(const Json& generation, const Json& config = Json::object()) {
    stdfs::copy(std::string(LK_TEST_DATA) + "/golden/peft/tiny", scratch.path(),
                stdfs::copy_options::recursive);
    Json file = read_json(scratch.file("config.json"));
    file.update(config);
    std::ofstream(scratch.file("config.json")) << file;
    stdfs::remove(scratch.file("generation_config.json"));
    if (!generation.is_null()) std::ofstream(scratch.file("generation_config.json")) << generation;
  }
  OwnSampling read() const { return read_own_sampling(scratch.path()); }
  std::vector<std::int32_t> stops() const {
    return Tokenizer::from_folder(scratch.path())->stop_ids();
  }
  test::ProgramResult generate(const std::string& flags = "", const char* to = " 2>&1") const {
    return test::run_program("generate --device cpu --json --prompt abc --max-tokens 12 --model " +
                                 scratch.path() + " " + flags,
                             to);
  }
  Json ids(const std::string& flags = "") const {
    const test::ProgramResult r = generate(flags, " 2>/dev/null");
    REQUIRE(r.status == 0);
    return parse_json(r.out, "generate")["ids"];
  }
};

bool has(const std::vector<std::int32_t>& ids, std::int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TEST_CASE("generation_config.json is read, or config.json where it is missing") {
  const Json all = {
      {"repetition_penalty", 1.5}, {"no_repeat_ngram_size", 2}, {"length_penalty", 2}};
  for (const Model& m : {Model(all), Model(nullptr, all)}) {
    const OwnSampling own = m.read();
    CHECK(own.repetition_penalty == 1.5);
    CHECK(own.no_repeat_ngram == 2);
    CHECK(own.length_penalty == 2);
    CHECK(own.left_out.empty());
  }
  const OwnSampling none = Model(Json::object(), all).read();
  CHECK(!none.repetition_penalty);
  CHECK(!none.no_repeat_ngram);
  CHECK(!read_own_sampling("model.gguf").repetition_penalty);
}

TEST_CASE("keys that change a greedy text and are not obeyed are listed, others are not") {
  const Json said = {
      {"suppress_tokens", {7}},        {"bad_words_ids", {{7}}}, {"num_beams", 4},
      {"forced_eos_token_id", 0},      {"min_new_tokens", 5},    {"early_stopping", true},
      {"sequence_bias", {{{7}, 1.5}}}, {"stop_strings", "x"}};
  CHECK(Model(said).read().left_out.size() == said.size());
  const Json nothing = {{"suppress_tokens", nullptr},
                        {"bad_words_ids", Json::array()},
                        {"num_beams", 1},
                        {"min_length", 0},
                        {"early_stopping", false},
                        {"guidance_scale", 1.0},
                        {"repetition_penalty", 1.0},
                        {"no_repeat_ngram_size", 0},
                        {"do_sample", true},
                        {"temperature", 0.6},
                        {"top_k", 20},
                        {"top_p", 0.95},
                        {"max_length", 50},
                        {"pad_token_id", 0},
                        {"use_cache", true},
                        {"transformers_version", "4.51.0"}};
  const OwnSampling own = Model(nothing).read();
  CHECK(own.left_out.empty());
  CHECK(!own.repetition_penalty);
  CHECK(!own.no_repeat_ngram);
}

TEST_CASE("a value that can't be is refused by file and key") {
  for (const auto& [key, value] : {std::pair<const char*, Json>{"repetition_penalty", 0},
                                   {"repetition_penalty", "1"},
                                   {"no_repeat_ngram_size", -1},
                                   {"no_repeat_ngram_size", 1.5},
                                   {"length_penalty", true}}) {
    const Model m(Json{{key, value}});
    std::string error;
    try {
      m.read();
    } catch (const InputError& e) {
      error = e.what();
    }
    CHECK_MESSAGE(error.find(std::string("generation_config.json: ") + key) != std::string::npos,
                  key, ": ", error);
  }
}

TEST_CASE("generate obeys the model's penalties unless a flag says otherwise, and says so") {
  const Model plain(nullptr), own(Json{{"repetition_penalty", 1.5}, {"suppress_tokens", {7}}});
  const Json ids = plain.ids();
  CHECK(plain.ids("--repetition-penalty 1.5") != ids);
  CHECK(own.ids() == plain.ids("--repetition-penalty 1.5"));
  CHECK(own.ids("--repetition-penalty 1") == ids);
  const std::string said = own.generate().out;
  CHECK_MESSAGE(said.find("generation_config.json: repetition_penalty 1.5") != std::string::npos,
                said);
  CHECK_MESSAGE(said.find("obeys suppress_tokens;") != std::string::npos, said);
  CHECK(own.generate("--repetition-penalty 1").out.find("repetition_penalty") == std::string::npos);
  const Model beams(Json{{"early_stopping", true}, {"num_beams", 2}});
  CHECK(beams.generate().out.find("obeys num_beams;") != std::string::npos);
  CHECK(beams.generate("--beams 2").out.find("obeys early_stopping;") != std::string::npos);
  CHECK(Model(Json{{"repetition_penalty", -1}}).generate().status == 3);
}

TEST_CASE("config.json says what ends a text only where there is no generation_config.json") {
  const Json other = {{"eos_token_id", 165}};
  CHECK(has(Model(nullptr, other).stops(), 165));
  CHECK(!has(Model({{"eos_token_id", 2}}, other).stops(), 165));
  CHECK(!has(Model(Json::object(), other).stops(), 165));
  CHECK(has(Model(Json{{"eos_token_id", {2, 165}}}).stops(), 165));
  // A text that is trained still needs an end.
  const Model m(Json::object(), other);
  stdfs::remove(m.scratch.file("tokenizer_config.json"));
  CHECK(Tokenizer::from_folder(m.scratch.path())->eos() == 165);
}
