// From a vocabulary's strings to the merges of ids that byte pair encoding runs on.
#pragma once

#include <memory>
#include <string_view>
#include <unordered_map>

#include "text/bpe.h"
#include "text/tokenizer_builder.h"

namespace lk {

using TokenIds = std::unordered_map<std::string_view, std::int32_t>;  // by vocabulary string

// The alphabet is spec.byte_level's; merges come from spec.merges, or from spec.scores as
// sentencepiece does it: two neighbours merge if together they spell a piece, the highest score
// first. InputError naming spec.where if a merge names no token, comes twice, or bytes are missing.
std::unique_ptr<BytePairs> link_merges(const TokenizerSpec& spec, const TokenIds& ids);

}  // namespace lk
