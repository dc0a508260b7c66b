#include "text/bleu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/white_space.h"

namespace lk {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::size_t at = 0;
  std::string out;
  for (std::size_t hit; (hit = text.find(from, at)) != std::string::npos; at = hit + from.size())
    out.append(text, at, hit - at).append(to);
  text = out.append(text, at, std::string::npos);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_point(char c) { return c == '.' || c == ','; }

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_length(static_cast<unsigned char>(text[i]));
    if (is_space(utf8_decode(text.data() + i))) {
      inside = false;
    } else {
      if (!inside) words.emplace_back();
      words.back().append(text, i, n);
      inside = true;
    }
    i += n;
  }
  return words;
}

// Sets ASCII punctuation apart, except ' , - . which have rules of their own.
std::string apart_punctuation(std::string_view text) {
  std::string out;
  for (char c : text) {
    const bool apart = (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
                       (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
    if (apart)
      out.append({' ', c, ' '});
    else
      out += c;
  }
  return out;
}

// Goes over the text from left to right: `join` writes two neighbours that `match`, with spaces,
// and what was matched is not looked at again.
template <class Match, class Join>
std::string pairs(const std::string& text, const Match& match, const Join& join) {
  std::string out;
  std::size_t i = 0;
  while (i < text.size()) {
    if (i + 1 < text.size() && match(text[i], text[i + 1])) {
      join(out, text[i], text[i + 1]);
      i += 2;
    } else {
      out += text[i++];
    }
  }
  return out;
}

}  // namespace

// Note [Bytes are enough]: the rules for . and , look at the character before or after. Where that
// is not ASCII, its last (or first) byte stands for it: no byte of it is a digit or a point, and
// spaces are only put beside the point.
std::vector<std::string> tokenize_13a(std::string_view line) {
  std::string text = utf8_repaired(line);  // a model may write half a character
  replace_all(text, "<skipped>", "");
  replace_all(text, "-\n", "");
  replace_all(text, "\n", " ");
  replace_all(text, "&quot;", "\"");
  replace_all(text, "&amp;", "&");
  replace_all(text, "&lt;", "<");
  replace_all(text, "&gt;", ">");
  text = apart_punctuation(" " + text + " ");
  auto space_after = [](std::string& out, char a, char b) { out.append({a, ' ', b, ' '}); };
  auto space_before = [](std::string& out, char a, char b) { out.append({' ', a, ' ', b}); };
  text = pairs(
      text, [](char a, char b) { return !is_digit(a) && is_point(b); }, space_after);
  text = pairs(
      text, [](char a, char b) { return is_point(a) && !is_digit(b); }, space_before);
  text = pairs(
      text, [](char a, char b) { return is_digit(a) && b == '-'; }, space_after);
  return split(text);
}

NgramCounts word_ngrams(const std::vector<std::string>& words, std::size_t n) {
  NgramCounts counts;
  for (std::size_t i = 0; i + n <= words.size(); ++i) {
    std::string key;  // words hold no space
    for (std::size_t j = i; j < i + n; ++j) key.append(words[j]) += ' ';
    ++counts[key];
  }
  return counts;
}

NgramCounts most_ngrams(std::span<const std::vector<std::string>> texts, std::size_t n) {
  NgramCounts most;
  for (const auto& text : texts)
    for (const auto& [gram, count] : word_ngrams(text, n)) most[gram] = std::max(most[gram], count);
  return most;
}

void Bleu::add(std::string_view hypothesis, std::span<const std::string> references) {
  if (references.empty()) throw UsageError("BLEU: a sentence without references");
  const auto words = tokenize_13a(strip_right(hypothesis));
  std::vector<std::vector<std::string>> wanted;
  std::int64_t closest = -1;
  const std::int64_t length = std::ssize(words);
  for (const std::string& reference : references) {
    wanted.push_back(tokenize_13a(strip_right(reference)));
    const std::int64_t n = std::ssize(wanted.back());
    const std::int64_t off = std::abs(n - length), best = std::abs(closest - length);
    if (closest < 0 || off < best || (off == best && n < closest)) closest = n;
  }
  hypothesis_tokens_ += length;
  reference_tokens_ += closest;
  for (std::size_t n = 1; n <= kBleuOrder; ++n) {
    const NgramCounts most = most_ngrams(wanted, n);
    for (const auto& [gram, count] : word_ngrams(words, n)) {
      totals_[n - 1] += count;
      const auto found = most.find(gram);
      if (found != most.end()) matches_[n - 1] += std::min(count, found->second);
    }
  }
}

double Bleu::brevity_penalty() const {
  if (hypothesis_tokens_ >= reference_tokens_) return 1;
  if (hypothesis_tokens_ == 0) return 0;
  return std::exp(1 -
                  static_cast<double>(reference_tokens_) / static_cast<double>(hypothesis_tokens_));
}

// Exponential smoothing: the k-th order without a match counts as 1 / 2^k matches.
std::array<double, kBleuOrder> Bleu::precisions() const {
  std::array<double, kBleuOrder> p{};
  if (std::all_of(matches_.begin(), matches_.end(), [](std::int64_t m) { return m == 0; }))
    return p;
  double halves = 1;
  for (std::size_t n = 0; n < kBleuOrder && totals_[n] > 0; ++n) {
    const auto total = static_cast<double>(totals_[n]);
    if (matches_[n] == 0)
      p[n] = 100 / ((halves *= 2) * total);
    else
      p[n] = 100 * static_cast<double>(matches_[n]) / total;
  }
  return p;
}

double Bleu::score() const {
  double sum = 0;
  for (double p : precisions()) {
    if (p == 0) return 0;
    sum += std::log(p);
  }
  return brevity_penalty() * std::exp(sum / kBleuOrder);
}

}  // namespace lk
