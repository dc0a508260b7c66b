// A tokenizer from GGUF metadata (tokenizer.ggml.*). Source: ggml's docs/gguf.md.
#include <algorithm>

#include "io/gguf.h"
#include "tensor/error.h"
#include "text/tokenizer_builder.h"

namespace lk {

namespace {

// tokenizer.ggml.token_type
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

PreTokenizer find_pre_tokenizer(const GgufFile& file) {
  const std::string name = file.get_string("tokenizer.ggml.pre");
  if (name == "gpt-2") return PreTokenizer::Gpt2;
  if (name == "smollm") return PreTokenizer::SmolLm;
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") return PreTokenizer::Llama3;
  if (name == "qwen2") return PreTokenizer::Qwen2;
  throw InputError(concat(file.path(), ": tokenizer.ggml.pre: \"", name,
                          "\" is not a pre-tokenizer we know (gpt-2, smollm, llama-bpe, qwen2)"));
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  TokenizerSpec spec;
  spec.where = file.path();
  if (const std::string model = file.get_string("tokenizer.ggml.model"); model != "gpt2")
    throw InputError(concat(file.path(), ": tokenizer.ggml.model: \"", model,
                            "\" is not read; only byte-level BPE (\"gpt2\") is"));
  spec.pre = find_pre_tokenizer(file);
  // What the file leaves out, by family: tokenizer.json has both in so many words.
  spec.nfc = spec.pre == PreTokenizer::Qwen2;
  spec.ignore_merges = spec.pre == PreTokenizer::Llama3;

  spec.tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto n = static_cast<std::int64_t>(spec.tokens.size());
  if (file.has_key("tokenizer.ggml.token_type")) {
    const std::vector<std::int32_t> types = file.get_ints("tokenizer.ggml.token_type");
    if (std::ssize(types) != n)
      throw InputError(concat(file.path(), ": tokenizer.ggml.token_type has ", types.size(),
                              " entries for ", n, " tokens"));
    for (std::size_t i = 0; i < types.size(); ++i) {
      if (types[i] < kNormal || types[i] > kByte)
        throw InputError(concat(file.path(), ": tokenizer.ggml.token_type: ", types[i],
                                " of token ", i, " is no token type"));
      if (types[i] == kByte)
        throw InputError(concat(file.path(), ": token ", i, " (\"", spec.tokens[i],
                                "\") is a byte token, which byte-level BPE has none of"));
      if (types[i] == kControl || types[i] == kUserDefined)
        spec.added.push_back({.content = spec.tokens[i],
                              .id = static_cast<std::int32_t>(i),
                              .special = types[i] == kControl});
    }
  }
  const std::vector<std::string>& merges = file.get_strings("tokenizer.ggml.merges");
  spec.merges.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::size_t space = merges[i].find(' ');
    if (space == std::string::npos || merges[i].find(' ', space + 1) != std::string::npos)
      throw InputError(concat(file.path(), ": tokenizer.ggml.merges: entry ", i, " (\"", merges[i],
                              "\") is not two tokens"));
    spec.merges.emplace_back(merges[i].substr(0, space), merges[i].substr(space + 1));
  }

  auto id = [&](const char* name) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    return static_cast<std::int32_t>(file.get_int_or(key, -1, 0, n - 1));
  };
  spec.bos = id("bos_token_id");
  spec.eos = id("eos_token_id");
  for (const char* name : {"eot_token_id", "eom_token_id"})
    if (std::int32_t stop = id(name); stop >= 0) spec.stop_ids.push_back(stop);
  // Old files type these as ordinary; a text must still be able to name them, and content not.
  std::vector<std::int32_t> markers = spec.stop_ids;
  markers.insert(markers.end(), {spec.bos, spec.eos});
  for (std::int32_t marker : markers) {
    auto same = [&](const AddedToken& token) { return token.id == marker; };
    if (marker >= 0 && std::none_of(spec.added.begin(), spec.added.end(), same))
      spec.added.push_back({.content = spec.tokens[static_cast<std::size_t>(marker)],
                            .id = marker,
                            .special = true});
  }
  // Llama 3's own recipe starts with BOS; files made before the key existed say nothing.
  spec.adds_bos =
      file.get_bool_or("tokenizer.ggml.add_bos_token", spec.pre == PreTokenizer::Llama3);
  spec.chat_template = file.get_string_or("tokenizer.chat_template", "");
  return TokenizerBuilder::build(std::move(spec));
}

}  // namespace lk
