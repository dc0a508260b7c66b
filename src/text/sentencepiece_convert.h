// Converts sentencepiece-style BPE between tokenizer.json, which lists merges, and GGUF, which has
// a score for each token. Part of tokenizer_convert.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"

namespace lk {

class Tokenizer;

// Scores, as sentencepiece uses them: any two pieces that spell a piece merge, the highest score
// first.
struct PieceScores {
  std::vector<float> scores;  // by id
  bool space_prefix = true;   // a space goes before each text
};

// `token` with sentencepiece's mark for each space, and with a space for each mark.
std::string with_marks(std::string token);
std::string with_spaces(std::string token);

// Sets the GGUF types of the added tokens of a tokenizer.json, which Tokenizer::from_folder has
// read, and spells them in `tokens` as GGUF does. Ids beyond tokens.size() are left out. Throws
// InputError for an added token that GGUF can't express.
//
// Note [Runs of spaces]: Gemma's added tokens of several marks (U+2581) are not found in text as
// they stand, since a space becomes a mark only afterwards: merges make them, before any others.
// GGUF calls them user-defined and spells them with spaces. Both are the same if merges cut a run
// of spaces as a search for the longest run does and no other merge comes in between; otherwise
// they stay ordinary pieces.
void mark_added_pieces(const Json& file, const std::string& path, const Tokenizer& tokenizer,
                       std::vector<std::string>& tokens, std::vector<std::int32_t>& types);

// The scores that stand for the merges of a tokenizer.json, which Tokenizer::from_folder has read.
// `tokens` and GGUF `types` by id. Merges of a token that is found in text whole never run and need
// no score; pieces that no merge makes become unused. Throws InputError, naming path and reason, where GGUF's readers would give other ids:
// merges that leave out a way to make a token or make tokens in turns, or another normalizer.
PieceScores piece_scores(const Json& file, const std::string& path,
                         const std::vector<std::string>& tokens, std::vector<std::int32_t>& types);

// "normalizer", "decoder" and "model" (without its vocab) of a tokenizer.json for `pieces`.
// `unknown`: null, or the token for characters without one. Throws InputError naming `where` if the
// order of merges can't say what equal scores do.
struct PieceJson {
  Json normalizer, decoder, model;
};
PieceJson piece_json(const std::vector<std::string>& tokens, const PieceScores& pieces,
                     const std::vector<std::int32_t>& types, const Json& unknown,
                     const std::string& where);

}  // namespace lk
