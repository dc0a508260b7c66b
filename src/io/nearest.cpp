#include "io/nearest.h"

#include <algorithm>
#include <utility>

#include "io/utf8.h"

namespace lk {

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t changed = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, changed}));
    }
  }
  return row.back();
}

std::string nearest_name(const std::string& wrong, const std::vector<std::string>& names) {
  constexpr std::size_t kMostLetters = 100;  // nobody mistypes more, and the table is their square
  if (wrong.size() > kMostLetters) return "";
  std::string nearest;
  std::size_t least = wrong.size() / 3 + 1;
  for (const std::string& name : names) {
    if (name.size() > kMostLetters) continue;
    const std::size_t d = edit_distance(ascii_lower_case(wrong), ascii_lower_case(name));
    if (d < least) least = d, nearest = name;
  }
  return nearest;
}

}  // namespace lk
