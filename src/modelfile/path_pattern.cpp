#include "modelfile/path_pattern.h"

#include <cctype>
#include <regex>

#include "io/printable.h"
#include "tensor/error.h"

namespace lk {
namespace {

constexpr std::size_t kLongest = 2000;  // characters: bounds what compiling a pattern costs

[[noreturn]] void refuse_pattern(const std::string& where, const std::string& text,
                                 const char* why) {
  throw InputError(concat(where, ": the regular expression ", printable(text), " ", why,
                          ": list the module names instead"));
}

// Rewrites a pattern of Python's re for std::regex's ECMAScript grammar. They agree on literals,
// sets, groups, lookahead, alternatives and repeats; what they read differently is refused, and
// the names of groups are dropped, as nobody asks for what a group matched.
std::string to_ecmascript(const std::string& text, const std::string& where) {
  std::string out;
  bool in_set = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i], next = i + 1 < text.size() ? text[i + 1] : '\0';
    out += c;
    if (c == '\\') {
      if (next == '\0') refuse_pattern(where, text, "ends in a backslash");
      const bool letter = std::isalnum(static_cast<unsigned char>(next)) != 0;
      if (letter && std::string_view("dDwWsSbB").find(next) == std::string_view::npos)
        refuse_pattern(where, text, "has an escape that is not supported");
      out += next;
      ++i;
    } else if (in_set) {
      if (c == '[') refuse_pattern(where, text, "has a set within a set");
      in_set = c != ']';
    } else if (c == '[') {
      in_set = true;
      if (next == '^') out += text[++i];
      if (i + 1 < text.size() && text[i + 1] == ']')
        refuse_pattern(where, text, "has ']' first in a set");
    } else if (c == '(' && next == '?') {
      const std::string_view rest = std::string_view(text).substr(i + 2);
      if (rest.starts_with("P<")) {
        const std::size_t end = text.find('>', i);
        if (end == std::string::npos) refuse_pattern(where, text, "has a group without an end");
        i = end;
      } else if (rest.starts_with(":") || rest.starts_with("=") || rest.starts_with("!")) {
        out += text.substr(i + 1, 2);
        i += 2;
      } else {
        refuse_pattern(where, text, "has a kind of group that is not supported");
      }
    } else if (c == '*' || c == '+' || c == '?' || c == '}') {
      std::size_t after = i + 1;
      if (next == '?') ++after;  // lazy
      if (after < text.size() &&
          std::string_view("*+?{").find(text[after]) != std::string_view::npos)
        refuse_pattern(where, text, "repeats a repeat");
      out += text.substr(i + 1, after - i - 1);
      i = after - 1;
    }
  }
  return out;
}

}  // namespace

struct PathPattern::Compiled {
  std::regex regex;
};

PathPattern::PathPattern(const std::string& text, Match match, const std::string& where) {
  if (text.size() > kLongest) refuse_pattern(where, text, "is too long");
  std::string pattern = to_ecmascript(text, where);
  if (match == Match::Tail) pattern = "(?:.*\\.)?(?:" + pattern + ")";
  if (match == Match::Start) pattern = "(?:" + pattern + ").*";
  std::regex::flag_type flags = std::regex::ECMAScript;
#ifdef __GLIBCXX__
  flags |=
      std::regex_constants::__polynomial;  // no backtracking: a hostile pattern can't take forever
#endif
  try {
    // Brackets are balanced in `text` too, not only with the group around it.
    if (match != Match::Whole) std::regex(to_ecmascript(text, where), flags);
    compiled_ = std::make_shared<const Compiled>(Compiled{std::regex(pattern, flags)});
  } catch (const std::regex_error&) {
    refuse_pattern(where, text, "can't be read");
  }
}

bool PathPattern::matches(const std::string& path) const {
  return std::regex_match(path, compiled_->regex);
}

}  // namespace lk
