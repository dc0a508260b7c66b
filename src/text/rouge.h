// ROUGE-L of generated text against references, as the rouge-score package's "rougeL" without its
// stemmer: F1 of the longest common subsequence of words, over the whole text (not "rougeLsum").
// Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lk {

struct RougeL {
  double precision = 0, recall = 0, f1 = 0;  // 0 to 1
};

// The words of a text: runs of a-z and 0-9 of the lower-cased text; all else separates.
std::vector<std::string> tokenize_rouge(std::string_view text);
// ROUGE-L against the reference with the best F1 (the first of equals). UsageError if there is no
// reference. Takes words(hypothesis) x words(reference) operations.
RougeL rouge_l(std::string_view hypothesis, std::span<const std::string> references);
// ROUGE-L of words against those of one reference.
RougeL rouge_l_words(const std::vector<std::string>& words,
                     const std::vector<std::string>& reference);

}  // namespace lk
