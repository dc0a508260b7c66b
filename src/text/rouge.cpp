#include "text/rouge.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {
namespace {

// Length of the longest common subsequence, with one row of the table at a time.
std::size_t common(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::size_t> row(b.size() + 1, 0);
  for (const std::string& word : a) {
    std::size_t diagonal = 0;  // of the row before, one to the left
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = word == b[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

RougeL rouge_l_words(const std::vector<std::string>& words,
                     const std::vector<std::string>& wanted) {
  if (words.empty() || wanted.empty()) return {};
  const auto n = static_cast<double>(common(wanted, words));
  RougeL r{n / static_cast<double>(words.size()), n / static_cast<double>(wanted.size()), 0};
  if (r.precision + r.recall > 0) r.f1 = 2 * r.precision * r.recall / (r.precision + r.recall);
  return r;
}

std::vector<std::string> tokenize_rouge(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  auto letter = [&](char c) {
    if (!inside) words.emplace_back();
    words.back() += c;
    inside = true;
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
      letter(c);
    } else if (c >= 'A' && c <= 'Z') {
      letter(static_cast<char>(c - 'A' + 'a'));
    } else if (text.substr(i, 3) == "\xE2\x84\xAA") {  // the Kelvin sign's lower case is k
      letter('k');
      i += 2;
    } else if (text.substr(i, 2) == "\xC4\xB0") {  // that of I with a dot: i and a combining dot
      letter('i');
      inside = false;
      ++i;
    } else {
      inside = false;
    }
  }
  return words;
}

RougeL rouge_l(std::string_view hypothesis, std::span<const std::string> references) {
  if (references.empty()) throw UsageError("ROUGE-L: a text without references");
  const auto words = tokenize_rouge(hypothesis);
  RougeL best;
  bool first = true;
  for (const std::string& reference : references) {
    const RougeL r = rouge_l_words(words, tokenize_rouge(reference));
    if (first || r.f1 > best.f1) best = r;
    first = false;
  }
  return best;
}

}  // namespace lk
