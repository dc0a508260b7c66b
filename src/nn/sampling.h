// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lk {

struct SamplingSettings {
  std::int64_t max_tokens = 128;
  double temperature = 0;            // 0: greedy
  std::int64_t top_k = 0;            // 0: all
  double top_p = 1;                  // 1: all
  double min_p = 0;                  // 0: all
  double repetition_penalty = 1;     // 1: none
  std::int64_t no_repeat_ngram = 0;  // 0: off; n: no n tokens come twice, the prompt's included
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_ids = {};  // end a generation; not part of its result
  std::vector<std::string> stop = {};       // texts that end a generation
  // Beam search in place of choosing token by token: see nn/beam_search.h.
  std::int64_t beams = 1;     // 1: none
  double length_penalty = 1;  // scores are divided by (number of new tokens) to this power
};

// Throws UsageError naming the field that is out of range, or does not go with beams.
void check_sampling(const SamplingSettings& settings);

// Chooses a token from logits (V), in this order:
//   repetition penalty: logits of the ids in `history` are divided by it if positive, else
//     multiplied (Keskar et al., "CTRL", 2019);
//   no_repeat_ngram: a token that would complete n tokens that stand in `history` already is left
//     out, unless all would be (Paulus et al., "A Deep Reinforced Model", 2017);
//   greedy: the largest, the lowest id on ties;
//   else softmax of logits / temperature over the top_k largest; of these the smallest set whose
//     probability reaches top_p (Holtzman et al. 2020); of these the ones with at least min_p times
//     the largest probability; and a draw keyed by (seed, position).
// So the same settings give the same text, whoever else is in the batch. Throws NonFiniteError.
std::int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings,
                          std::int64_t position, std::span<const std::int32_t> history = {});

// Whether repetition_penalty or no_repeat_ngram change scores.
bool adjusts(const SamplingSettings& settings);
// The first two of these steps on scores (V) of any kind: logits, or log-probabilities.
void adjust_scores(std::vector<float>& scores, const SamplingSettings& settings,
                   std::span<const std::int32_t> history);

}  // namespace lk
