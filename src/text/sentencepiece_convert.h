// Sentencepiece-style BPE between tokenizer.json, which lists merges, and GGUF, which has a score
// for each token: what tokenizer_convert.cpp needs of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"

namespace lk {

// Sentencepiece merges whatever two pieces spell a piece, the highest score first.
struct PieceScores {
  std::vector<float> scores;  // by id
  bool space_prefix = true;   // a space goes before each text
};

// From a tokenizer.json that Tokenizer::from_folder reads. `tokens` by id, `mergeable`: those that
// merges may make. Throws InputError, naming path and reason, where GGUF's readers would give other
// ids: merges that leave out a way to make a token or make tokens in turns, another normalizer.
PieceScores piece_scores(const Json& file, const std::string& path,
                         const std::vector<std::string>& tokens,
                         const std::vector<bool>& mergeable);

// "normalizer", "decoder" and "model" (without its vocab) of tokenizer.json. `mergeable` as above.
struct PieceJson {
  Json normalizer, decoder, model;
};
PieceJson piece_json(const std::vector<std::string>& tokens, const PieceScores& pieces,
                     const std::vector<bool>& mergeable, const std::string& unknown);

}  // namespace lk
