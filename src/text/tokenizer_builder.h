// TokenizerSpec: what a tokenizer is made of, whichever file it was read from. TokenizerBuilder:
// the checks that all files share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace lk {

// Sentencepiece's mark for a space, U+2581.
inline constexpr const char* kSpaceMark = "\xE2\x96\x81";

// The pre-tokenizer Metaspace: writes `mark` for each space, and one before a text that does
// not start with it: every text between added tokens (Always), or only one at offset 0 (First).
struct Metaspace {
  enum class Prepend { Never, First, Always };
  std::string mark = kSpaceMark;
  Prepend prepend = Prepend::Always;
  bool split = true;  // a piece begins at each mark
};

// How decode() turns tokens into text.
struct DecoderSpec {
  std::string mark;                // written as a space; empty: there is no mark
  bool byte_fallback = false;      // "<0x0A>" is the byte
  std::size_t strip = 0;           // spaces taken off the beginning, if they are there
  bool first_loses_marks = false;  // the first token loses all its marks instead
};

struct TokenizerSpec {
  std::string where;  // the file, for messages
  // By id: vocabulary strings (spelt in the byte alphabet if byte_level), added tokens as they are.
  std::vector<std::string> tokens;
  std::vector<AddedToken> added;
  bool byte_level = true;      // pieces start as bytes; else as characters
  bool byte_fallback = false;  // a character that is no token becomes its bytes' tokens
  std::vector<std::pair<std::string, std::string>> merges;  // in rank order; or else scores
  std::vector<float> scores;                                // by id, as in sentencepiece
  std::vector<bool> piece;           // by id: whether a piece may become it; empty: all may
  std::vector<std::int32_t> unused;  // ids that merges by score may never make
  Normalizer normalizer;
  bool added_are_normal = false;  // the file has normalised its added tokens already
  PreTokenizer pre = PreTokenizer::Gpt2;
  std::optional<Metaspace> metaspace;
  DecoderSpec decoder;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  bool fuse_unknown = false;
  std::int32_t unknown = -1, bos = -1, eos = -1;
  std::vector<std::int32_t> stop_ids;
  std::vector<std::int32_t> before, after;  // put around each text that stands alone
  std::string chat_template, tool_template;
  std::vector<std::pair<std::string, std::string>> named_tokens;  // Tokenizer::named_tokens()
};

struct TokenizerBuilder {
  // Makes the tokenizer. InputError naming spec.where if ids, merges or added tokens contradict
  // each other.
  static std::unique_ptr<Tokenizer> build(TokenizerSpec spec);
};

}  // namespace lk
