// Turns a vocabulary's strings into the merges of ids that byte pair encoding runs on.
#pragma once

#include <memory>
#include <string_view>
#include <unordered_map>

#include "io/utf8.h"
#include "text/bpe.h"
#include "text/tokenizer_builder.h"

namespace lk {

using TokenIds = std::unordered_map<std::string_view, std::int32_t>;  // ids by vocabulary string

// Calls visit(left, right) for every way to cut a token in two between characters.
template <class Visit>
void for_each_cut(std::string_view token, Visit&& visit) {
  std::size_t cut = 0;
  auto next = [&] { cut += utf8_length(static_cast<unsigned char>(token[cut])); };
  if (!token.empty()) next();
  for (; cut < token.size(); next()) visit(token.substr(0, cut), token.substr(cut));
}

// Makes the byte pairs of `spec`: the alphabet as spec.byte_level says; merges come from
// spec.merges, or from spec.scores as sentencepiece does it: two neighbours merge if together they
// spell a piece, the highest score first. InputError naming spec.where if a merge names no token or
// appears twice, or if bytes are missing.
std::unique_ptr<BytePairs> link_merges(const TokenizerSpec& spec, const TokenIds& ids);

}  // namespace lk
