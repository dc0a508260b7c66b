// What a tokenizer is made of, whichever file it was read from, and the checks all files share.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace lk {

struct TokenizerSpec {
  std::string where;  // the file, for messages
  std::vector<std::string>
      tokens;  // by id: byte-level vocabulary strings, added tokens as they are
  std::vector<AddedToken> added;
  std::vector<std::pair<std::string, std::string>> merges;  // in rank order
  PreTokenizer pre = PreTokenizer::Gpt2;
  bool nfc = false;            // normalise to NFC first
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  bool fuse_unknown = false;
  std::int32_t unknown = -1, bos = -1, eos = -1;
  std::vector<std::int32_t> stop_ids;
  bool adds_bos = false;
  std::string chat_template;
};

struct TokenizerBuilder {
  // InputError naming spec.where if ids, merges or added tokens contradict each other.
  static std::unique_ptr<Tokenizer> build(TokenizerSpec spec);
};

}  // namespace lk
