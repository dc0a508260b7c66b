// A tokenizer in a folder of its own, and data files written beside it.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "harness.h"
#include "io/json.h"
#include "tensor/error.h"
#include "text/dataset.h"
#include "text/tokenizer.h"

namespace lk::test {

using Ids = std::vector<std::int32_t>;

// The small GPT-2 of the golden files, with <|im_end|> as its end of text.
struct DatasetFixture {
  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("lk_dataset_" + std::to_string(::getpid()));
  std::unique_ptr<Tokenizer> tokenizer;
  DatasetOptions options;

  DatasetFixture() {
    std::filesystem::create_directories(folder);
    std::filesystem::copy(std::string(LK_TEST_DATA) + "/golden/text/gpt2/tokenizer.json", folder);
    write("tokenizer_config.json", R"({"eos_token":"<|im_end|>"})");
    tokenizer = Tokenizer::from_folder(folder.string());
    options.seq_len = 64;
  }
  ~DatasetFixture() { std::filesystem::remove_all(folder); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder / name, std::ios::binary) << text;
    return (folder / name).string();
  }
  Dataset load(const std::string& text, const std::string& name = "data.jsonl") const {
    return load_dataset(write(name, text), *tokenizer, "chatml", options);
  }
  std::string error(const std::string& text, const std::string& name = "data.jsonl") const {
    try {
      load(text, name);
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }
  // Whether the file is refused, with this in the message.
  bool refused(const std::string& text, const std::string& part) const {
    const std::string said = error(text);
    const bool ok =
        said.find(part) != std::string::npos && said.find("data.jsonl") != std::string::npos;
    if (!ok) MESSAGE(said, " does not say ", part);
    return ok;
  }
  // Gives the tokenizer a post-processor, as JSON.
  void use_post_processor(const std::string& json) {
    Json file = read_json(std::string(LK_TEST_DATA) + "/golden/text/gpt2/tokenizer.json");
    file["post_processor"] = Json::parse(json);
    write("tokenizer.json", file.dump());
    tokenizer = Tokenizer::from_folder(folder.string());
  }
  Ids ids(const std::string& text) const { return tokenizer->encode(text); }
  std::string trained(const Row& row) const {
    Ids out;
    for (std::size_t i = 0; i < row.ids.size(); ++i)
      if (row.supervised[i]) out.push_back(row.ids[i]);
    return tokenizer->decode(out, false);
  }
};

}  // namespace lk::test
