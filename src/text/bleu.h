// BLEU of generated sentences against references, exactly as sacreBLEU computes it by default:
// corpus level, 13a tokenizer, cased, up to 4-grams, exponential smoothing, signature
// nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp.
// Sources: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002;
// Post, "A Call for Clarity in Reporting BLEU Scores", 2018; mteval-v13a for the tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lk {

inline constexpr int kBleuOrder = 4;

// Adds sentences up; score() may be asked for at any time.
class Bleu {
 public:
  // A generated sentence and one or more references; UTF-8. UsageError if there is no reference.
  void add(std::string_view hypothesis, std::span<const std::string> references);

  double score() const;  // 0 to 100
  // Percent of the hypotheses' n-grams found in a reference, n = 1 to 4, as smoothed for score().
  std::array<double, kBleuOrder> precisions() const;
  double brevity_penalty() const;
  std::int64_t hypothesis_tokens() const { return hypothesis_tokens_; }
  // The length of the reference closest to each hypothesis (the shorter one on a tie), summed.
  std::int64_t reference_tokens() const { return reference_tokens_; }

 private:
  std::array<std::int64_t, kBleuOrder> matches_{}, totals_{};
  std::int64_t hypothesis_tokens_ = 0, reference_tokens_ = 0;
};

// The words of a line under the 13a rules.
std::vector<std::string> tokenize_13a(std::string_view line);

// How often each n-gram stands in a text: its words, a space behind each.
using NgramCounts = std::map<std::string, std::int64_t>;
NgramCounts word_ngrams(const std::vector<std::string>& words, std::size_t n);
// The count of each n-gram in the text that has most of it.
NgramCounts most_ngrams(std::span<const std::vector<std::string>> texts, std::size_t n);

}  // namespace lk
