#include "text/jinja/search.h"

#include <algorithm>

namespace lk::jinja {

namespace {

// Reads a string from its other end.
struct Reversed {
  std::string_view s;
  std::size_t size() const { return s.size(); }
  char operator[](std::size_t i) const { return s[s.size() - 1 - i]; }
};

// Finds matches from the left, of strings read from either end.
template <class S>
std::vector<std::size_t> find_all(const S& text, const S& what, std::int64_t most, Budget& budget) {
  // borders[i]: the length of the longest proper prefix of what[0..i] that is its suffix too.
  std::vector<std::uint32_t> borders(what.size());
  for (std::size_t i = 1, k = 0; i < what.size(); ++i) {
    while (k > 0 && what[i] != what[k]) k = borders[k - 1];
    if (what[i] == what[k]) ++k;
    borders[i] = static_cast<std::uint32_t>(k);
  }
  std::vector<std::size_t> found;
  for (std::size_t i = 0, k = 0; i < text.size(); ++i) {
    if (most >= 0 && std::ssize(found) >= most) break;
    while (k > 0 && text[i] != what[k]) k = borders[k - 1];
    if (text[i] == what[k]) ++k;
    if (k < what.size()) continue;
    budget.bytes(sizeof(std::size_t));
    found.push_back(i + 1 - k);
    k = 0;
  }
  return found;
}

}  // namespace

std::vector<std::size_t> occurrences(std::string_view text, std::string_view what,
                                     std::int64_t most, bool from_right, Budget& budget) {
  budget.work(1 + (text.size() + what.size()) / 8);
  if (what.size() > text.size() || most == 0) return {};
  budget.bytes(sizeof(std::uint32_t) * what.size());
  if (!from_right) return find_all(text, what, most, budget);
  std::vector<std::size_t> found = find_all(Reversed{text}, Reversed{what}, most, budget);
  for (std::size_t& at : found) at = text.size() - at - what.size();
  std::reverse(found.begin(), found.end());
  return found;
}

bool holds(std::string_view text, std::string_view what, Budget& budget) {
  return what.empty() || !occurrences(text, what, 1, false, budget).empty();
}

std::int64_t count_characters(std::string_view text, Budget& budget) {
  budget.work(1 + text.size() / 16);
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace lk::jinja
