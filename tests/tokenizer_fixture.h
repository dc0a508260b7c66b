// What the tokenizer's tests share: the golden files, the long text, a scratch folder, a tiny
// vocabulary.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness.h"
#include "io/json.h"
#include "text/tokenizer.h"
#include "text/tokenizer_builder.h"

namespace lk::test {

using Ids = std::vector<std::int32_t>;

inline const std::string kData = std::string(LK_TEST_DATA) + "/golden/text/";

// The megabyte of text that tests/golden/make_text_golden.py draws, from the same generator.
inline const std::string& long_text() {
  static const std::string text = [] {
    const Json source = read_json(kData + "snippets.json");
    const auto snippets = source.at("snippets").get<std::vector<std::string>>();
    const auto spaces = source.at("spaces").get<std::vector<std::string>>();
    std::uint64_t state = 20240229;
    auto draw = [&](std::uint64_t n) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      return static_cast<std::size_t>((state >> 33) % n);
    };
    constexpr std::size_t ranges[4][2] = {
        {0, 0x80}, {0x80, 0x800}, {0x800, 0x10000}, {0x10000, 0x110000}};
    std::string out;
    while (out.size() < source.at("bytes").get<std::size_t>()) {
      const std::size_t kind = draw(8);
      if (kind < 6) {
        out += snippets[draw(snippets.size())];
      } else if (kind == 6) {
        const auto [first, end] = ranges[draw(4)];
        const std::size_t c = first + draw(end - first);
        utf8_append(out, static_cast<char32_t>(c >= 0xD800 && c < 0xE000 ? 0xFFFD : c));
      } else {
        out += spaces[draw(spaces.size())];
      }
    }
    return out;
  }();
  return text;
}

inline std::unique_ptr<Tokenizer> open_small(const std::string& name) {
  return Tokenizer::from_folder(kData + name);
}

// A minimal byte-level vocabulary: all 256 bytes, then the tokens that the test adds.
inline TokenizerSpec tiny(PreTokenizer pre = PreTokenizer::Gpt2) {
  TokenizerSpec spec;
  spec.where = "tiny";
  spec.pre = pre;
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    std::string token;
    utf8_append(token, visible ? static_cast<char32_t>(b) : next++);
    spec.tokens.push_back(token);
  }
  return spec;
}

struct Scratch {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("lk_tokenizer_" + std::to_string(::getpid()));
  Scratch() { std::filesystem::create_directories(path); }
  ~Scratch() { std::filesystem::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
  }
};

inline Json small_json(const std::string& name = "gpt2") {
  return read_json(kData + name + "/tokenizer.json");
}

#define CHECK_REFUSED(error, part)                                                           \
  do {                                                                                       \
    const std::string message = (error);                                                     \
    CHECK_MESSAGE(message.find(part) != std::string::npos, message, " does not say ", part); \
  } while (false)

}  // namespace lk::test
