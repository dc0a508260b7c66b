// What a model's folder asks of every generation, as transformers' generate() reads it: a penalty for
// repetitions, tokens that never come. How a text is searched for (greedily, by drawing, by beams) and
// how long it may be is the user's choice alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lk {

struct OwnSampling {
  std::string file;  // generation_config.json, or config.json where it is missing
  std::optional<double> repetition_penalty = {};
  std::optional<double> length_penalty = {};  // for beams
  std::optional<std::int64_t> no_repeat_ngram = {};
  // Keys that change what transformers generates greedily, and that nothing here obeys.
  std::vector<std::string> left_out = {};
};

// Reads it from the model's folder; a GGUF file asks for nothing. Throws InputError naming file and
// key for a value that can't be.
OwnSampling read_own_sampling(const std::string& model);

}  // namespace lk
