// Converts sentencepiece-style BPE between tokenizer.json, which lists merges, and GGUF, which has
// a score for each token. Part of tokenizer_convert.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"

namespace lk {

// Scores, as sentencepiece uses them: any two pieces that spell a piece merge, the highest score
// first.
struct PieceScores {
  std::vector<float> scores;  // by id
  bool space_prefix = true;   // a space goes before each text
};

// The scores that stand for the merges of a tokenizer.json, which Tokenizer::from_folder has read.
// `tokens` by id; `mergeable`: whether merges may make a token. Throws InputError, naming path and
// reason, where GGUF's readers would give other ids: merges that leave out a way to make a token or
// make tokens in turns, or another normalizer.
PieceScores piece_scores(const Json& file, const std::string& path,
                         const std::vector<std::string>& tokens,
                         const std::vector<bool>& mergeable);

// "normalizer", "decoder" and "model" (without its vocab) of a tokenizer.json for `pieces`.
// `mergeable`: whether merges may make a token.
struct PieceJson {
  Json normalizer, decoder, model;
};
PieceJson piece_json(const std::vector<std::string>& tokens, const PieceScores& pieces,
                     const std::vector<bool>& mergeable, const std::string& unknown);

}  // namespace lk
