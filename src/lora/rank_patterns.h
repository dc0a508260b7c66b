// Ranks and alphas of single modules, chosen by patterns of their paths as in PEFT's rank_pattern
// and alpha_pattern.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lora/adapter.h"

namespace lk {

// A key is a regular expression for a module's path or the end of it after any dot: "v_proj",
// "layers\\.0\\..*", "self_attn.q_proj". Of the keys that match a module the first counts.
template <class T>
using ByPattern = std::vector<std::pair<std::string, T>>;

// Fills config.exceptions for a model of `model`: for every module that config puts an adapter on,
// the rank and alpha of the first keys that match, else those of config.shape. Throws UsageError
// naming `rank_pattern` or `alpha_pattern` for a value out of its range, a key that PathPattern
// can't read, one that is given twice, and one that matches none of these modules.
void apply_patterns(LoraConfig& config, const ModelConfig& model,
                    const ByPattern<std::int64_t>& ranks, const ByPattern<double>& alphas);

// Puts a name in the place of all targets that are paths of modules with this last name, if they are all
// that a model of `model` has: "q_proj" for 30 paths.
void shorten_targets(LoraConfig& config, const ModelConfig& model);

// Before a regular expression among targets: it matches the whole paths of modules, as PEFT reads `target_modules` that
// is a text.
inline constexpr const char* kTargetExpression = "regex:";
// The targets, or what a single one that is such an expression matches in a model of `model`, by names where shorten_targets()
// finds them. Throws UsageError naming `targets` for an expression beside others, one that PathPattern can't read, and
// one that matches nothing, or the vocabulary.
std::vector<std::string> expand_targets(const std::vector<std::string>& targets,
                                        const ModelConfig& model);

// Parses "KEY=R,KEY=R". A comma within brackets belongs to its key. Throws UsageError naming `flag`.
ByPattern<std::int64_t> parse_rank_pattern(const std::string& text, const std::string& flag);
ByPattern<double> parse_alpha_pattern(const std::string& text, const std::string& flag);
// Parses "0-3,7" into 0, 1, 2, 3, 7. Throws UsageError naming `flag`.
std::vector<std::int64_t> parse_layers(const std::string& text, const std::string& flag);
// The texts that are parsed into these values.
std::string pattern_text(const ByPattern<std::int64_t>& ranks);
std::string pattern_text(const ByPattern<double>& alphas);
std::string layers_text(const std::vector<std::int64_t>& layers);

}  // namespace lk
