// The scores of the E2E NLG challenge, which the LoRA paper reports: BLEU, NIST, ROUGE-L and CIDEr of
// generated texts, each against all of its references. (METEOR needs WordNet and is not among them.)
// The formulas are those of the challenge's script; words are mteval's, all in lower case:
//   BLEU, NIST      mteval-v13a's words (tokenize_13a)
//   ROUGE-L, CIDEr  the same without punctuation, where the script asks the Stanford tokenizer; they
//                   differ in contractions ("don't" stays one word)
// Sources: Papineni et al., "BLEU", 2002; Doddington, "Automatic Evaluation of Machine Translation
// Quality Using N-gram Co-Occurrence Statistics", 2002; Lin, "ROUGE", 2004; Vedantam et al., "CIDEr",
// 2015 (CIDEr-D); Dusek et al., "Evaluating the State-of-the-Art of End-to-End NLG", 2020.
#pragma once

#include "text/bleu.h"

namespace lk {

// Adds texts up; the scores are of all that were added.
class E2eScores {
 public:
  // A generated text and one or more references; UTF-8. UsageError if there is no reference.
  void add(std::string_view hypothesis, std::span<const std::string> references);

  double bleu() const { return bleu_.score(); }  // 0 to 100
  // sum over n = 1..5 of the information of matched n-grams / number of n-grams, times a penalty for
  // texts shorter than their references are on average. The information of an n-gram is log2 of how
  // often its first n - 1 words occur in all references, over how often it does itself.
  double nist() const;
  // Mean over texts of (1 + b²) P R / (R + b² P), b = 1.2, P and R the best of any reference: shares
  // of words in the longest common subsequence. 0 to 1.
  double rouge_l() const;
  // Mean over texts and their references, and over n = 1..4, of the cosine of their n-gram counts,
  // weighted by log(texts / texts whose references have the n-gram) and clipped to the reference's;
  // times exp(-(difference of lengths)² / 72), times 10. 0 to 10; 0 where there is one text only.
  double cider() const;

 private:
  using Words = std::vector<std::string>;
  struct Text {
    Words hypothesis;
    std::vector<Words> references;
  };
  Bleu bleu_;
  std::vector<Text> mteval_;        // in mteval's words
  std::vector<Text> unpunctuated_;  // without punctuation
};

}  // namespace lk
