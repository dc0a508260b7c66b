#include "run/scoring.h"

#include <algorithm>
#include <cmath>

#include "run/shared_inference.h"
#include "text/bleu.h"
#include "text/e2e_scores.h"
#include "text/rouge.h"

namespace lk {

std::vector<std::vector<double>> choice_log_probabilities(Transformer& model,
                                                          std::span<const ChoiceRow> rows,
                                                          std::int64_t batch_tokens,
                                                          const ScoringProgress& progress,
                                                          const EvaluationShare& share) {
  std::vector<std::vector<double>> sums(rows.size());
  std::vector<const Row*> batch;
  std::vector<std::size_t> owners;  // the row that each choice of the round belongs to
  std::vector<double> own;          // of this process's batch of the round
  std::int64_t tokens = 0, n_batches = 0;
  auto compute = [&] {
    TokenBatch b = make_batch(model.backend(), batch, model.virtual_tokens());
    const std::vector<double> losses = to_host_f64(model.token_losses(b));
    std::size_t next = 0;
    for (const Row* choice : batch) {
      double sum = 0;
      std::int64_t n = choice->n_supervised(model.virtual_tokens() > 0);
      for (; n > 0; --n) sum -= losses[next++];
      if (!std::isfinite(sum)) throw NonFiniteError("a choice's log-probability is not finite");
      own.push_back(sum);
    }
  };
  auto end_round = [&] {
    std::size_t next = 0;
    for (const std::vector<double>& numbers : share.round(own))
      for (double sum : numbers) sums[owners.at(next++)].push_back(sum);
    if (progress) progress(static_cast<std::int64_t>(owners.back()) + 1, std::ssize(rows));
    own.clear(), owners.clear();
  };
  auto flush = [&] {
    if (batch.empty()) return;
    if (share.computes(n_batches)) compute();
    batch.clear(), tokens = 0;
    if (++n_batches % share.size == 0) end_round();
  };
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (const Row& choice : rows[r].choices) {
      if (tokens + std::ssize(choice.ids) > batch_tokens) flush();
      batch.push_back(&choice);
      owners.push_back(r);
      tokens += std::ssize(choice.ids);
    }
  }
  flush();
  if (!owners.empty()) end_round();
  return sums;
}

ChoiceScores score_choices(std::span<const ChoiceRow> rows,
                           std::span<const std::vector<double>> log_probabilities) {
  require(rows.size() == log_probabilities.size(), "score_choices: ", log_probabilities.size(),
          " rows of log-probabilities for ", rows.size());
  ChoiceScores scores;
  std::int64_t right = 0, right_norm = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::vector<double> norm = log_probabilities[r];
    for (std::size_t i = 0; i < norm.size(); ++i)
      norm[i] /= static_cast<double>(rows[r].characters[i]);
    auto best = [](const std::vector<double>& v) {
      return static_cast<std::size_t>(std::max_element(v.begin(), v.end()) - v.begin());
    };
    right += best(log_probabilities[r]) == rows[r].answer;
    right_norm += best(norm) == rows[r].answer;
    scores.choices += std::ssize(norm);
    for (const Row& choice : rows[r].choices) scores.tokens += choice.n_supervised();
  }
  scores.rows = std::ssize(rows);
  scores.accuracy = static_cast<double>(right) / static_cast<double>(rows.size());
  scores.accuracy_norm = static_cast<double>(right_norm) / static_cast<double>(rows.size());
  return scores;
}

GenerationScores score_generation(Transformer& model, const Tokenizer& tokenizer,
                                  std::span<const ReferenceRow> rows,
                                  const SamplingSettings& sampling, std::int64_t batch,
                                  const ScoringProgress& progress, World* world) {
  std::vector<GenerationRequest> requests;
  for (const ReferenceRow& row : rows) requests.push_back({row.ids, sampling, -1});
  std::int64_t done = 0;
  GenerationEvents events;
  if (progress)
    events.on_done = [&](std::size_t, const Generation&) { progress(++done, std::ssize(rows)); };
  Generator generator(model, &tokenizer, {.max_batch = batch});
  const std::vector<Generation> answers =
      world ? generate_shared(*world, generator, requests, events.on_done)
            : generator.run(requests, events);
  GenerationScores scores;
  Bleu bleu;
  E2eScores e2e;
  double rouge = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    bleu.add(answers[i].text, rows[i].references);
    e2e.add(answers[i].text, rows[i].references);
    scores.references += std::ssize(rows[i].references);
    rouge += rouge_l(answers[i].text, rows[i].references).f1;
    scores.texts.push_back(answers[i].text);
  }
  scores.e2e_bleu = e2e.bleu(), scores.e2e_nist = e2e.nist();
  scores.e2e_rouge_l = e2e.rouge_l(), scores.e2e_cider = e2e.cider();
  scores.rows = std::ssize(rows);
  scores.bleu = bleu.score();
  scores.brevity_penalty = bleu.brevity_penalty();
  scores.hypothesis_tokens = bleu.hypothesis_tokens();
  scores.reference_tokens = bleu.reference_tokens();
  scores.rouge_l = rows.empty() ? 0 : rouge / static_cast<double>(rows.size());
  return scores;
}

}  // namespace lk
