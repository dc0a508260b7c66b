// Reads a tokenizer from GGUF metadata (tokenizer.ggml.*). Source: ggml's docs/gguf.md.
#include <algorithm>

#include "io/gguf.h"
#include "tensor/error.h"
#include "text/byte_alphabet.h"
#include "text/gguf_token_type.h"
#include "text/tokenizer_builder.h"

namespace lk {

namespace {

PreTokenizer find_pre_tokenizer(const GgufFile& file) {
  const std::string name = file.get_string("tokenizer.ggml.pre");
  if (name == "gpt-2") return PreTokenizer::Gpt2;
  if (name == "smollm") return PreTokenizer::SmolLm;
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3") return PreTokenizer::Llama3;
  if (name == "qwen2") return PreTokenizer::Qwen2;
  throw InputError(concat(file.path(), ": tokenizer.ggml.pre: \"", name,
                          "\" is not a pre-tokenizer we know (gpt-2, smollm, llama-bpe, qwen2)"));
}

// Sets what a file of byte-level BPE leaves out, by family (tokenizer.json has both explicitly).
void read_byte_level(const GgufFile& file, TokenizerSpec& spec) {
  spec.pre = find_pre_tokenizer(file);
  if (spec.pre == PreTokenizer::Qwen2) spec.normalizer.add_nfc();
  spec.ignore_merges = spec.pre == PreTokenizer::Llama3;
  const std::vector<std::string>& merges = file.get_strings("tokenizer.ggml.merges");
  spec.merges.reserve(merges.size());
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::size_t space = merges[i].find(' ');
    if (space == std::string::npos || merges[i].find(' ', space + 1) != std::string::npos)
      throw InputError(concat(file.path(), ": tokenizer.ggml.merges: entry ", i, " (\"", merges[i],
                              "\") is not two tokens"));
    spec.merges.emplace_back(merges[i].substr(0, space), merges[i].substr(space + 1));
  }
}

// Reads what sentencepiece has: scores instead of merges, and a space before each text unless the
// file says no.
void read_sentencepiece(const GgufFile& file, TokenizerSpec& spec) {
  spec.byte_level = false;
  spec.byte_fallback = true;
  spec.fuse_unknown = true;
  spec.pre = PreTokenizer::Whole;
  spec.scores = file.get_floats("tokenizer.ggml.scores");
  if (spec.scores.size() != spec.tokens.size())
    throw InputError(concat(file.path(), ": tokenizer.ggml.scores has ", spec.scores.size(),
                            " entries for ", spec.tokens.size(), " tokens"));
  if (file.get_bool_or("tokenizer.ggml.remove_extra_whitespaces", false))
    throw InputError(file.path() +
                     ": tokenizer.ggml.remove_extra_whitespaces: true is not supported");
  if (file.has_key("tokenizer.ggml.precompiled_charsmap"))
    throw InputError(file.path() + ": tokenizer.ggml.precompiled_charsmap: not supported");
  const bool prefix = file.get_bool_or("tokenizer.ggml.add_space_prefix", true);
  if (prefix) spec.normalizer.add_prepend(kSpaceMark);
  spec.normalizer.add_replace(" ", kSpaceMark);
  spec.added_are_normal = true;
  spec.decoder = {.mark = kSpaceMark, .byte_fallback = true, .strip = prefix ? 1u : 0u};
}

// Reads which tokens are found in text whole, which are made by merging, which are bytes.
void read_types(const GgufFile& file, TokenizerSpec& spec) {
  const bool pieces = !spec.byte_level;
  if (!file.has_key("tokenizer.ggml.token_type")) {
    if (pieces) throw InputError(file.path() + ": tokenizer.ggml.token_type: missing");
    return;
  }
  const std::vector<std::int32_t> types = file.get_ints("tokenizer.ggml.token_type");
  if (types.size() != spec.tokens.size())
    throw InputError(concat(file.path(), ": tokenizer.ggml.token_type has ", types.size(),
                            " entries for ", spec.tokens.size(), " tokens"));
  const bool prefix = file.get_bool_or("tokenizer.ggml.add_space_prefix", true);
  if (pieces) spec.piece.resize(types.size());
  for (std::size_t i = 0; i < types.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    if (types[i] < kNormal || types[i] > kByte)
      throw InputError(concat(file.path(), ": tokenizer.ggml.token_type: ", types[i], " of token ",
                              i, " is no token type"));
    if (types[i] == kByte && !pieces)
      throw InputError(concat(file.path(), ": token ", i, " (\"", spec.tokens[i],
                              "\") is a byte token, which byte-level BPE has none of"));
    if (types[i] == kByte && fallback_byte(spec.tokens[i]) < 0)
      throw InputError(concat(file.path(), ": token ", i, " (\"", spec.tokens[i],
                              "\") is a byte token, yet not of the form <0x0A>"));
    // Readers find the unknown token in text as they find control tokens.
    if (types[i] == kControl || (pieces && types[i] == kUnknown))
      spec.added.push_back({.content = spec.tokens[i], .id = id, .special = true});
    // Sentencepiece looks for user-defined tokens once spaces are marked; converters write them
    // with spaces. Where a space goes before each text, one goes before the text after such a token
    // too, as llama.cpp has it.
    if (types[i] == kUserDefined) {
      AddedToken token{.content = spec.tokens[i], .id = id, .normalized = pieces && !prefix};
      for (std::size_t at; token.normalized && (at = token.content.find(' ')) != std::string::npos;)
        token.content.replace(at, 1, kSpaceMark);
      spec.added.push_back(std::move(token));
    }
    if (!pieces) continue;
    spec.piece[i] = types[i] == kNormal;
    if (types[i] == kUnused) spec.unused.push_back(id);
    if (types[i] == kUnknown && spec.unknown < 0) spec.unknown = id;
  }
}

// Reads whether BOS and EOS stand around each text. Llama's own recipes start with BOS, and files
// made before the keys existed do not say so. Source: llama.cpp's defaults.
void read_around(const GgufFile& file, TokenizerSpec& spec) {
  auto read = [&](const std::string& name, std::int32_t id, bool otherwise) {
    const std::string key = "tokenizer.ggml.add_" + name + "_token";
    const bool adds = file.get_bool_or(key, otherwise);
    if (adds && id < 0 && file.has_key(key))
      throw InputError(concat(file.path(), ": ", key, ": true, but tokenizer.ggml.", name,
                              "_token_id is missing"));
    return adds && id >= 0 ? std::vector{id} : std::vector<std::int32_t>{};
  };
  const bool llama = spec.pre == PreTokenizer::Llama3 || spec.pre == PreTokenizer::Whole;
  spec.before = read("bos", spec.bos, llama);
  spec.after = read("eos", spec.eos, false);
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  TokenizerSpec spec;
  spec.where = file.path();
  const std::string model = file.get_string("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama")
    throw InputError(concat(file.path(), ": tokenizer.ggml.model: \"", model,
                            "\" is not read; byte-level BPE (\"gpt2\") and sentencepiece BPE "
                            "(\"llama\") are"));
  if (model == "gpt2") find_pre_tokenizer(file);  // first, so that the message names an unknown one
  spec.tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto n = static_cast<std::int64_t>(spec.tokens.size());
  if (model == "gpt2")
    read_byte_level(file, spec);
  else
    read_sentencepiece(file, spec);
  read_types(file, spec);

  auto id = [&](const char* name) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    return static_cast<std::int32_t>(file.get_int_or(key, -1, 0, n - 1));
  };
  spec.bos = id("bos_token_id");
  spec.eos = id("eos_token_id");
  for (const char* name : {"eot_token_id", "eom_token_id"})
    if (std::int32_t stop = id(name); stop >= 0) spec.stop_ids.push_back(stop);
  // Old files type these markers as ordinary tokens. A template must still be able to name them,
  // and content must not.
  std::vector<std::int32_t> markers = spec.stop_ids;
  markers.insert(markers.end(), {spec.bos, spec.eos});
  for (std::int32_t marker : markers) {
    auto same = [&](const AddedToken& token) { return token.id == marker; };
    if (marker >= 0 && std::none_of(spec.added.begin(), spec.added.end(), same))
      spec.added.push_back({.content = spec.tokens[static_cast<std::size_t>(marker)],
                            .id = marker,
                            .special = true});
  }
  read_around(file, spec);
  spec.chat_template = file.get_string_or("tokenizer.chat_template", "");
  spec.tool_template = file.get_string_or("tokenizer.chat_template.tool_use", "");
  return TokenizerBuilder::build(std::move(spec));
}

}  // namespace lk
