// What a model writes without and with its adapter, for a person to compare.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/method.h"
#include "nn/transformer.h"
#include "text/tokenizer.h"

namespace lk {

// Tokens of each text: enough to judge a sentence, and cheap for a run.
inline constexpr std::int64_t kSampleTokens = 32;

struct Sample {
  std::string prompt, reference;  // the row's text before its first trained tokens, and theirs
  std::string base, adapted;      // greedy continuations, without and with the adapter
};

enum class SampleKind { Both, Adapted };  // Adapted leaves `base` empty

// The tokens of the row that a sample goes on from; 0 if they leave `positions` no room to write.
std::int64_t sample_prompt(const Row& row, std::int64_t positions);
// Of the longest of the first `n` such rows; 0 if there are none.
std::int64_t longest_sample_prompt(std::span<const Row> rows, std::int64_t n,
                                   std::int64_t positions);

// Makes samples of the first `n` rows that leave the model's positions room to write. A row that is
// trained on from its beginning is cut after its first quarter, of at most 64 tokens. The adapter
// is enabled afterwards. `stopped` (may be empty) is asked before each token; once it is true no
// samples are returned.
std::vector<Sample> make_samples(Transformer& model, Method& method, const Tokenizer& tokenizer,
                                 std::span<const Row> rows, std::int64_t n,
                                 SampleKind kind = SampleKind::Both,
                                 const std::function<bool()>& stopped = {});

}  // namespace lk
