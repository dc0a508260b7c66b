#include "text/jinja/lexer.h"

#include <algorithm>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/white_space.h"

namespace lk::jinja {

namespace {

// Makes all kinds of newlines \n, and drops one at the very end.
std::string unify_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool digit(char c) { return c >= '0' && c <= '9'; }
bool name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : s_(unify_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < s_.size()) root();
    add(Token::Kind::End, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(concat("line ", line_, ": ", what));
  }
  bool here(std::string_view what) const { return s_.compare(at_, what.size(), what) == 0; }
  void add(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }
  void move_to(std::size_t to) {
    line_ += static_cast<int>(std::count(s_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         s_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    line_starting_ = to > at_ && s_[to - 1] == '\n';
    at_ = to;
  }
  void skip_space() { move_to(end_of_space(s_, at_)); }

  // Reads text up to the next tag, without what the tag's sign or its place on the line takes away.
  void data(std::size_t end, char sign, bool block) {
    std::string_view text = std::string_view(s_).substr(at_, end - at_);
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && block) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) && strip_right(text.substr(line)).empty())
        text = text.substr(0, line);
    }
    if (!text.empty()) add(Token::Kind::Data, std::string(text));
    move_to(end);
  }

  char sign_at(std::size_t i) const {
    return i < s_.size() && (s_[i] == '-' || s_[i] == '+') ? s_[i] : '\0';
  }

  // Leaves a tag at its end, two characters. "-%}" takes along the white space that follows, a
  // plain end of a block or comment one newline.
  void leave(std::size_t end, char sign, bool block) {
    move_to(end + 2);
    const bool newline = line_starting_;
    if (sign == '-')
      move_to(end_of_space(s_, at_));
    else if (block && sign != '+' && at_ < s_.size() && s_[at_] == '\n')
      move_to(at_ + 1);
    else
      line_starting_ = newline;
    line_starting_ = s_[at_ - 1] == '\n';
  }

  void root() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = s_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= s_.size()) return data(s_.size(), '+', false);
      if (s_[tag + 1] == '%' || s_[tag + 1] == '{' || s_[tag + 1] == '#') break;
    }
    const char kind = s_[tag + 1], sign = sign_at(tag + 2);
    data(tag, sign, kind != '{');
    const std::size_t inside = tag + 2 + (sign != '\0');
    if (kind == '#') return comment(inside);
    if (kind == '%' && raw(inside)) return;
    add(kind == '{' ? Token::Kind::VariableBegin : Token::Kind::BlockBegin, "");
    move_to(inside);
    inside_tag(kind == '{');
  }

  void comment(std::size_t from) {
    const std::size_t end = s_.find("#}", from);
    if (end == std::string::npos) fail("a comment has no end");
    const char sign = end > from ? sign_at(end - 1) : '\0';
    leave(end, sign, true);
  }

  // Reads {% raw %} ... {% endraw %}, if that is what begins here.
  bool raw(std::size_t from) {
    std::size_t i = end_of_space(s_, from);
    if (s_.compare(i, 3, "raw") != 0) return false;
    i = end_of_space(s_, i + 3);
    const char sign = i < s_.size() && s_[i] == '-' ? '-' : '\0';
    if (sign != '\0') ++i;
    if (s_.compare(i, 2, "%}") != 0) return false;
    leave(i, sign, false);
    for (std::size_t tag = at_;; ++tag) {
      tag = s_.find("{%", tag);
      if (tag == std::string::npos) fail("{% raw %} has no {% endraw %}");
      const char before = sign_at(tag + 2);
      std::size_t j = end_of_space(s_, tag + 2 + (before != '\0'));
      if (s_.compare(j, 6, "endraw") != 0) continue;
      j = end_of_space(s_, j + 6);
      const char after = sign_at(j);
      if (after != '\0') ++j;
      if (s_.compare(j, 2, "%}") != 0) continue;
      data(tag, before, true);
      leave(j, after, true);
      return true;
    }
  }

  void inside_tag(bool variable) {
    const std::string end = variable ? "}}" : "%}";
    std::string open;  // brackets that are not closed yet
    for (;;) {
      skip_space();
      if (at_ >= s_.size()) fail("a tag has no end");
      const char sign = sign_at(at_);
      if (open.empty() && (here(end) || (sign != '\0' && !(variable && sign == '+') &&
                                         s_.compare(at_ + 1, 2, end) == 0))) {
        add(variable ? Token::Kind::VariableEnd : Token::Kind::BlockEnd, "");
        return leave(here(end) ? at_ : at_ + 1, here(end) ? '\0' : sign, !variable);
      }
      const char c = s_[at_];
      if (name_start(c)) {
        name();
      } else if (digit(c)) {
        number();
      } else if (c == '\'' || c == '"') {
        string(c);
      } else {
        op(open);
      }
    }
  }

  void name() {
    std::size_t end = at_;
    while (end < s_.size() && (name_start(s_[end]) || digit(s_[end]))) ++end;
    add(Token::Kind::Name, s_.substr(at_, end - at_));
    move_to(end);
  }

  void number() {
    std::size_t end = at_;
    auto digits = [&] {
      while (end < s_.size() && (digit(s_[end]) || s_[end] == '_')) ++end;
    };
    digits();
    bool real = false;
    if (end + 1 < s_.size() && s_[end] == '.' && digit(s_[end + 1])) {
      real = true;
      ++end;
      digits();
    }
    if (end < s_.size() && (s_[end] == 'e' || s_[end] == 'E')) {
      std::size_t exponent = end + 1;
      if (exponent < s_.size() && (s_[exponent] == '+' || s_[exponent] == '-')) ++exponent;
      if (exponent < s_.size() && digit(s_[exponent])) {
        real = true;
        end = exponent;
        digits();
      }
    }
    if (end < s_.size() && name_start(s_[end])) fail("a number runs into a name");
    std::string text = s_.substr(at_, end - at_);
    std::erase(text, '_');
    if (!real && text.size() > 1 && text[0] == '0' &&
        text.find_first_not_of('0') != std::string::npos)
      fail("a number starts with 0");
    add(real ? Token::Kind::Real : Token::Kind::Integer, text);
    move_to(end);
  }

  void op(std::string& open) {
    for (const char* two : {"//", "**", "==", "!=", ">=", "<="})
      if (here(two)) {
        add(Token::Kind::Operator, two);
        return move_to(at_ + 2);
      }
    const char c = s_[at_];
    if (std::string_view("+-/*%~[](){}<>=.:|,").find(c) == std::string_view::npos)
      fail(concat("unexpected character \"",
                  s_.substr(at_, utf8_length(static_cast<unsigned char>(c))), "\""));
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) fail(std::string("unexpected ") + c);
      open.pop_back();
    }
    add(Token::Kind::Operator, std::string(1, c));
    move_to(at_ + 1);
  }

  void string(char quote) {
    std::string value;
    std::size_t i = at_ + 1;
    for (;; ++i) {
      if (i >= s_.size()) fail("a string has no end");
      if (s_[i] == quote) break;
      if (s_[i] != '\\') {
        value += s_[i];
        continue;
      }
      if (++i >= s_.size()) fail("a string has no end");
      i = escape(i, value);
    }
    add(Token::Kind::String, value);
    move_to(i + 1);
  }

  // Reads the escape whose letter is at i; returns where its last character is.
  std::size_t escape(std::size_t i, std::string& value) const {
    constexpr std::string_view letters = "ntr\\'\"abfv\n";
    constexpr std::string_view meanings = "\n\t\r\\'\"\a\b\f\v";
    if (const std::size_t k = letters.find(s_[i]); k != std::string_view::npos) {
      if (s_[i] != '\n') value += meanings[k];
      return i;
    }
    const std::size_t length = s_[i] == 'x' ? 2 : s_[i] == 'u' ? 4 : s_[i] == 'U' ? 8 : 0;
    const bool octal = s_[i] >= '0' && s_[i] <= '7';
    if (s_[i] == 'N') fail("characters by name, \\N, are not in this subset of Jinja");
    if (length == 0 && !octal) {  // not an escape
      value += '\\';
      value += s_[i];
      return i;
    }
    std::uint32_t code = 0;
    std::size_t at = octal ? i : i + 1;
    const std::size_t most = octal ? i + 3 : i + 1 + length;
    for (; at < most && at < s_.size(); ++at) {
      const char c = s_[at];
      const int d = digit(c)               ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : 16;
      if (d >= (octal ? 8 : 16)) break;
      code = code * (octal ? 8 : 16) + static_cast<std::uint32_t>(d);
    }
    if ((!octal && at < most) || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail("a string has a bad escape");
    utf8_append(value, code);
    return at - 1;
  }

  std::string s_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace lk::jinja
