// JSON files of models and adapters with one value replaced by a value of another type: understood or
// refused by name, never an error of ours or of the JSON library.
#include <filesystem>
#include <fstream>

#include "harness.h"
#include "io/input_file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "modelfile/model_file.h"
#include "scratch_folder.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

using namespace lk;
namespace stdfs = std::filesystem;

namespace {

const std::string kGolden = std::string(LK_TEST_DATA) + "/golden/";

// Paths of all values of a document: of containers too, the document itself first.
void collect(const Json& value, const Json::json_pointer& at,
             std::vector<Json::json_pointer>& all) {
  all.push_back(at);
  if (value.is_object())
    for (const auto& [key, member] : value.items()) collect(member, at / key, all);
  if (value.is_array())
    for (std::size_t i = 0; i < std::min<std::size_t>(value.size(), 4); ++i)
      collect(value[i], at / i, all);
}

// Puts other values in the place of each value of folder/name and calls `use`, which may throw
// InputError or UsageError; both must name a file of the folder.
template <class F>
void replace_each_value(const test::ScratchFolder& folder, const std::string& name, const F& use) {
  const std::string path = folder.file(name), text = read_file(path, 1 << 20);
  const Json good = Json::parse(text);
  std::vector<Json::json_pointer> places;
  collect(good, Json::json_pointer(), places);
  const Json others[] = {nullptr,
                         true,
                         -1,
                         1.5,
                         4294967295u,
                         18446744073709551615u,
                         "text",
                         "",
                         Json::array(),
                         Json::array({1}),
                         Json::array({"x"}),
                         Json::object(),
                         Json{{"a", 1}}};
  for (const auto& place : places) {
    if (place.to_string().starts_with("/model/vocab/") && place.to_string().size() % 16 != 0)
      continue;  // hundreds of tokens are alike
    for (const Json& other : others) {
      Json changed = good;
      changed[place] = other;
      folder.write(name, changed.dump());
      const std::string what = name + place.to_string() + " = " + other.dump();
      CAPTURE(what);
      try {
        use();
      } catch (const InputError& e) {
        CHECK(std::string(e.what()).find(folder.path()) != std::string::npos);
      } catch (const UsageError&) {
      } catch (const std::exception& e) {
        FAIL_CHECK(e.what());
      }
    }
  }
  folder.write(name, text);
}

void copy_into(const test::ScratchFolder& folder, const std::string& golden) {
  for (const auto& file : stdfs::directory_iterator(kGolden + golden))
    stdfs::copy(file.path(), folder.file(file.path().filename().string()));
}

// What every program does with a model's files, but for computing.
void use_model(const std::string& folder) {
  const ModelFile model(folder);
  model.stored(model.slots().front());
  const auto tokenizer = model.read_tokenizer();
  tokenizer->decode(tokenizer->encode("Hi there <s>, 12 caf\xC3\xA9"));
  tokenizer->stop_ids();
  ChatTemplate::choose(*tokenizer, "chatml").render({{"user", "Hi"}}, true);
}

}  // namespace

TEST_CASE("a value of the wrong type in a model's JSON files is understood or refused by name") {
  const test::ScratchFolder folder;
  copy_into(folder, "peft/tiny");
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    replace_each_value(folder, name, [&] { use_model(folder.path()); });
  use_model(folder.path());
}

TEST_CASE(
    "a value of the wrong type in any family's config.json is understood or refused by name") {
  for (const char* name :
       {"llama3_rope", "mistral_window", "gemma3", "qwen2_window", "qwen3", "gpt2"}) {
    const test::ScratchFolder folder;
    stdfs::copy(kGolden + "models/" + name + "/config.json", folder.file("config.json"));
    replace_each_value(folder, "config.json", [&] { ModelFile(folder.path()).slots(); });
  }
}

TEST_CASE("a value of the wrong type in the index of shards is refused by name") {
  for (const char* name : {"mistral_linear", "gpt2_odd"}) {
    const test::ScratchFolder folder;
    copy_into(folder, std::string("models/") + name);
    replace_each_value(folder, "model.safetensors.index.json",
                       [&] { open_safetensors_model(folder.path())->names(); });
  }
}

TEST_CASE("a value of the wrong type in adapter_config.json is understood or refused by name") {
  for (const char* name : {"subset.initial", "all_linear.after"}) {
    const test::ScratchFolder folder;
    copy_into(folder, std::string("peft/") + name);
    replace_each_value(folder, "adapter_config.json", [&] { open_adapter(folder.path()); });
  }
}

TEST_CASE("sizes that no model has cost nothing before they are refused") {
  const test::ScratchFolder folder;
  copy_into(folder, "peft/tiny");
  const Json good = Json::parse(read_file(folder.file("config.json"), 1 << 20));
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"})
    for (std::int64_t value : {std::int64_t{1} << 32, (std::int64_t{1} << 40) - 1, INT64_MAX}) {
      Json config = good;
      config[key] = value;
      folder.write("config.json", config.dump());
      CAPTURE(key);
      CAPTURE(value);
      CHECK_THROWS_AS(ModelFile(folder.path()), InputError);
    }
}
