// Scores a model by what it prefers and by what it writes.
#pragma once

#include <functional>
#include <span>

#include "dist/world.h"
#include "nn/evaluation.h"
#include "nn/generate.h"
#include "nn/transformer.h"
#include "text/eval_rows.h"

namespace lk {

// Called now and then with the number of rows done so far; may be empty.
using ScoringProgress = std::function<void(std::int64_t done, std::int64_t total)>;

struct ChoiceScores {
  double accuracy = 0;  // share of rows whose right choice has the largest summed log-probability
  double accuracy_norm = 0;  // that share with each sum divided by the choice's characters
  std::int64_t rows = 0, choices = 0, tokens = 0;
};

// The summed log-probabilities of each choice's tokens, row by row, in batches of at most
// batch_tokens tokens (at least one choice each), which several processes may share. Throws
// NonFiniteError if one is not finite.
std::vector<std::vector<double>> choice_log_probabilities(Transformer& model,
                                                          std::span<const ChoiceRow> rows,
                                                          std::int64_t batch_tokens,
                                                          const ScoringProgress& progress = {},
                                                          const EvaluationShare& share = {});
// Accuracies from those sums. On a tie the first of the best choices counts as the model's.
ChoiceScores score_choices(std::span<const ChoiceRow> rows,
                           std::span<const std::vector<double>> log_probabilities);

struct GenerationScores {
  double bleu = 0;     // 0 to 100, as sacreBLEU: see text/bleu.h
  double rouge_l = 0;  // 0 to 1, mean over rows of the best reference's F1 (text/rouge.h)
  double brevity_penalty = 0;
  double e2e_bleu = 0, e2e_nist = 0, e2e_rouge_l = 0, e2e_cider = 0;  // text/e2e_scores.h
  std::int64_t references = 0;
  std::int64_t rows = 0, hypothesis_tokens = 0, reference_tokens = 0;  // as BLEU counts tokens
  std::vector<std::string> texts;                                      // the generated texts
};

// Continues every row's prompt, `batch` at a time, and compares the texts with the references. `world`:
// the processes that share the prompts (run/shared_inference.h); null: this one alone.
GenerationScores score_generation(Transformer& model, const Tokenizer& tokenizer,
                                  std::span<const ReferenceRow> rows,
                                  const SamplingSettings& sampling, std::int64_t batch,
                                  const ScoringProgress& progress = {}, World* world = nullptr);

}  // namespace lk
