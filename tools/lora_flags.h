// The flags that choose an adapter's modules, ranks and variant, for the programs that make one.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "lora/rank_patterns.h"

namespace lk::program {

inline constexpr const char* kDoraHelp = "DoRA: train the lengths of the weight's rows too";

// What gives the adapter another shape, as given.
struct LoraFlags {
  std::string layers, rank_pattern;
};

inline void add_lora_flags(CLI::App& app, LoraFlags& flags) {
  app.add_option("--layers", flags.layers, "only these layers, e.g. 0-3,7 (all)");
  app.add_option("--rank-pattern", flags.rank_pattern,
                 "ranks of single modules, KEY=R,...; a key is a name, the end of a path or a "
                 "regular expression for it");
}

inline std::vector<std::int64_t> layers_of(const LoraFlags& flags) {
  if (flags.layers.empty()) return {};
  return parse_layers(flags.layers, "--layers");
}
inline ByPattern<std::int64_t> rank_pattern_of(const LoraFlags& flags) {
  if (flags.rank_pattern.empty()) return {};
  return parse_rank_pattern(flags.rank_pattern, "--rank-pattern");
}

}  // namespace lk::program
