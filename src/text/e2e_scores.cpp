#include "text/e2e_scores.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "text/rouge.h"

namespace lk {
namespace {

constexpr std::size_t kNistOrder = 5, kCiderOrder = 4;
constexpr double kRougeBeta = 1.2, kCiderSigma = 6;

std::string lower_case(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

bool is_punctuation(const std::string& word) {
  return std::all_of(word.begin(), word.end(), [](char c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    return !letter && static_cast<unsigned char>(c) < 128;
  });
}

// exp(ln(1/2) (ln ratio / ln 1.5)²): 1 at the references' length, 1/2 at two thirds of it.
double nist_penalty(double ratio) {
  if (ratio >= 1) return 1;
  if (ratio <= 0) return 0;
  const double x = std::log(ratio) / std::log(1.5);
  return std::exp(std::log(0.5) * x * x);
}

// The counts of a text's n-grams, n = 1..4, weighted for CIDEr.
struct CiderVector {
  std::array<std::map<std::string, double>, kCiderOrder> weights;
  std::array<double, kCiderOrder> norms{};
  double length = 0;  // in bigrams, as the script counts
};

}  // namespace

void E2eScores::add(std::string_view hypothesis, std::span<const std::string> references) {
  const std::string text = lower_case(hypothesis);
  std::vector<std::string> wanted;
  for (const std::string& reference : references) wanted.push_back(lower_case(reference));
  bleu_.add(text, wanted);
  Text& words = mteval_.emplace_back();
  words.hypothesis = tokenize_13a(text);
  for (const std::string& reference : wanted) words.references.push_back(tokenize_13a(reference));
  Text& bare = unpunctuated_.emplace_back(words);
  std::erase_if(bare.hypothesis, is_punctuation);
  for (Words& reference : bare.references) std::erase_if(reference, is_punctuation);
}

double E2eScores::nist() const {
  std::array<NgramCounts, kNistOrder + 1> counts;  // by n, of all references together
  double total_words = 0, mean_words = 0, text_words = 0;
  for (const Text& text : mteval_) {
    double words = 0;
    for (const Words& reference : text.references) {
      words += static_cast<double>(reference.size());
      for (std::size_t n = 1; n <= kNistOrder; ++n)
        for (const auto& [gram, count] : word_ngrams(reference, n)) counts[n][gram] += count;
    }
    total_words += words;
    mean_words += words / static_cast<double>(text.references.size());
    text_words += static_cast<double>(text.hypothesis.size());
  }
  auto information = [&](const std::string& gram, std::size_t n) {
    // An n-gram ends in a space, and so does the one without its last word.
    const std::string before = gram.substr(0, gram.rfind(' ', gram.size() - 2) + 1);
    const double of_before = n == 1 ? total_words : static_cast<double>(counts[n - 1].at(before));
    return std::log2(of_before / static_cast<double>(counts[n].at(gram)));
  };
  double score = 0;
  for (std::size_t n = 1; n <= kNistOrder; ++n) {
    double matched = 0, ngrams = 0;
    for (const Text& text : mteval_) {
      const NgramCounts most = most_ngrams(text.references, n);
      for (const auto& [gram, count] : word_ngrams(text.hypothesis, n)) {
        ngrams += static_cast<double>(count);
        const auto found = most.find(gram);
        if (found != most.end())
          matched += information(gram, n) * static_cast<double>(std::min(count, found->second));
      }
    }
    score += matched / std::max(ngrams, 1.0);
  }
  return mean_words > 0 ? score * nist_penalty(text_words / mean_words) : 0;
}

double E2eScores::rouge_l() const {
  double sum = 0;
  for (const Text& text : unpunctuated_) {
    double precision = 0, recall = 0;
    for (const Words& reference : text.references) {
      const RougeL r = rouge_l_words(text.hypothesis, reference);
      precision = std::max(precision, r.precision), recall = std::max(recall, r.recall);
    }
    const double b2 = kRougeBeta * kRougeBeta;
    if (precision > 0 && recall > 0)
      sum += (1 + b2) * precision * recall / (recall + b2 * precision);
  }
  return unpunctuated_.empty() ? 0 : sum / static_cast<double>(unpunctuated_.size());
}

double E2eScores::cider() const {
  std::map<std::string, double> texts_with;  // by n-gram: how many texts' references have it
  for (const Text& text : unpunctuated_) {
    std::set<std::string> own;
    for (const Words& reference : text.references)
      for (std::size_t n = 1; n <= kCiderOrder; ++n)
        for (const auto& [gram, count] : word_ngrams(reference, n)) own.insert(gram);
    for (const std::string& gram : own) ++texts_with[gram];
  }
  const double texts = static_cast<double>(unpunctuated_.size());
  auto vector_of = [&](const Words& words) {
    CiderVector v;
    for (std::size_t n = 1; n <= kCiderOrder; ++n)
      for (const auto& [gram, count] : word_ngrams(words, n)) {
        const auto found = texts_with.find(gram);
        const double in = found == texts_with.end() ? 1 : found->second;
        const double weight = static_cast<double>(count) * std::log(texts / in);
        v.weights[n - 1][gram] = weight;
        v.norms[n - 1] += weight * weight;
        if (n == 2) v.length += static_cast<double>(count);
      }
    for (double& norm : v.norms) norm = std::sqrt(norm);
    return v;
  };
  auto similarity = [](const CiderVector& text, const CiderVector& reference) {
    double sum = 0;
    for (std::size_t n = 0; n < kCiderOrder; ++n) {
      double dot = 0;
      for (const auto& [gram, weight] : text.weights[n]) {
        const auto found = reference.weights[n].find(gram);
        if (found != reference.weights[n].end())
          dot += std::min(weight, found->second) * found->second;
      }
      const double norms = text.norms[n] * reference.norms[n];
      sum += norms > 0 ? dot / norms : dot;
    }
    const double off = text.length - reference.length;
    return sum / kCiderOrder * std::exp(-off * off / (2 * kCiderSigma * kCiderSigma));
  };
  double sum = 0;
  for (const Text& text : unpunctuated_) {
    const CiderVector own = vector_of(text.hypothesis);
    double mean = 0;
    for (const Words& reference : text.references) mean += similarity(own, vector_of(reference));
    sum += 10 * mean / static_cast<double>(text.references.size());
  }
  return texts > 0 ? sum / texts : 0;
}

}  // namespace lk
