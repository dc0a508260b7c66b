#include "io/json_scanner.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "io/printable.h"
#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Bytes that stand for themselves inside a string: ASCII but controls, the quote and the backslash.
constexpr auto kPlain = [] {
  std::array<bool, 256> plain{};
  for (int c = 0x20; c < 0x80; ++c) plain[static_cast<std::size_t>(c)] = c != '"' && c != '\\';
  return plain;
}();

}  // namespace

JsonScanner::JsonScanner(std::string_view text, const std::string& where, Of of)
    : begin_(text.data()),
      p_(begin_),
      end_(begin_ + text.size()),
      where_(where),
      is_row_(of == Of::Row) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") fail("a byte order mark: save the file without it");
}

void JsonScanner::fail_at(const char* at, const std::string& rule) const {
  auto line = std::count(begin_, at, '\n') + 1;
  throw InputError(concat(where_, ": byte ", at - begin_,
                          line > 1 ? " (line " + std::to_string(line) + ")" : "", ": ", rule));
}

void JsonScanner::skip_space() {
  while (p_ != end_ && (*p_ == ' ' || *p_ == '\n' || *p_ == '\r' || *p_ == '\t')) ++p_;
}

char JsonScanner::peek() {
  skip_space();
  if (p_ == end_)
    fail(begin_ == end_ ? "empty: a JSON value is expected" : "the text ends too early");
  switch (*p_) {
    case '{':
    case '[':
    case '"':
    case 't':
    case 'f':
    case 'n':
      return *p_;
    case '-':
      return 0;
    default:
      break;
  }
  if (is_digit(*p_) || (is_row_ && (*p_ == 'N' || *p_ == 'I'))) return 0;
  fail("a JSON value is expected here, not " + printable({p_, 1}));
}

void JsonScanner::enter(char open) {
  if (peek() != open)
    fail(open == '{' ? "an object {...} is expected here" : "an array [...] is expected here");
  if (++depth_ > kMaxDepth) fail(concat("nested deeper than ", kMaxDepth, " levels"));
  ++p_;
}

bool JsonScanner::more(char close, bool first) {
  skip_space();
  if (p_ == end_) fail("the text ends too early");
  if (*p_ == close) {
    ++p_;
    return false;
  }
  if (!first) {
    if (*p_ != ',') fail(concat("',' or '", close, "' is expected here"));
    ++p_;
    skip_space();
    if (p_ != end_ && *p_ == close) fail("a comma before the end");
  }
  return true;
}

std::string JsonScanner::key() {
  skip_space();
  if (p_ == end_ || *p_ != '"') fail("a key in double quotes is expected here");
  std::string name = string();
  skip_space();
  if (p_ == end_ || *p_ != ':') fail("':' is expected after the key " + printable(name));
  ++p_;
  return name;
}

std::string JsonScanner::string() {
  if (peek() != '"') fail("a string is expected here");
  ++p_;
  std::string out;
  for (;;) {
    const char* run = p_;
    while (p_ != end_ && kPlain[static_cast<unsigned char>(*p_)]) ++p_;
    while (p_ != end_ && static_cast<unsigned char>(*p_) >= 0x80) {
      std::size_t n = utf8_checked_length(p_, end_);
      if (n == 0) fail("not UTF-8");
      p_ += n;
    }
    out.append(run, p_);
    if (p_ == end_) fail("the text ends inside a string");
    if (*p_ == '"') break;
    if (*p_ == '\\')
      escape(out);
    else if (static_cast<unsigned char>(*p_) < 0x20)
      fail("a control character in a string must be written as an escape");
  }
  ++p_;
  return out;
}

void JsonScanner::escape(std::string& out) {
  const char* start = p_++;
  if (p_ == end_) fail("the text ends inside a string");
  switch (*p_++) {
    case '"':
      out += '"';
      return;
    case '\\':
      out += '\\';
      return;
    case '/':
      out += '/';
      return;
    case 'b':
      out += '\b';
      return;
    case 'f':
      out += '\f';
      return;
    case 'n':
      out += '\n';
      return;
    case 'r':
      out += '\r';
      return;
    case 't':
      out += '\t';
      return;
    case 'u':
      break;
    default:
      fail_at(start, "an unknown escape");
  }
  std::uint32_t c = four_hex_digits();
  if (c >= 0xdc00 && c < 0xe000) fail_at(start, "a lone low surrogate");
  if (c >= 0xd800 && c < 0xdc00) {
    if (end_ - p_ < 2 || p_[0] != '\\' || p_[1] != 'u') fail_at(start, "a lone high surrogate");
    p_ += 2;
    std::uint32_t low = four_hex_digits();
    if (low < 0xdc00 || low >= 0xe000) fail_at(start, "a lone high surrogate");
    c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
  }
  utf8_append(out, c);
}

std::uint32_t JsonScanner::four_hex_digits() {
  std::uint32_t value = 0;
  if (end_ - p_ < 4) fail("\\u needs four hexadecimal digits");
  auto [stop, error] = std::from_chars(p_, p_ + 4, value, 16);
  if (error != std::errc() || stop != p_ + 4) fail("\\u needs four hexadecimal digits");
  p_ += 4;
  return value;
}

// Steps over `word` if it is what comes next.
bool JsonScanner::take(std::string_view word) {
  if (!std::string_view(p_, static_cast<std::size_t>(end_ - p_)).starts_with(word)) return false;
  p_ += word.size();
  return true;
}

void JsonScanner::literal(const char* word) {
  if (!take(word)) fail(concat("'", word, "' is expected here"));
}

bool JsonScanner::boolean() {
  bool value = peek() == 't';
  literal(value ? "true" : "false");
  return value;
}

void JsonScanner::null() {
  peek();
  literal("null");
}

JsonScanner::Number JsonScanner::number() {
  if (peek() != 0) fail("a number is expected here");
  if (is_row_) {
    using Limits = std::numeric_limits<double>;
    if (take("NaN")) return {.kind = Number::Float, .d = Limits::quiet_NaN()};
    if (take("Infinity")) return {.kind = Number::Float, .d = Limits::infinity()};
    if (take("-Infinity")) return {.kind = Number::Float, .d = -Limits::infinity()};
  }
  const char* start = p_;
  auto digits = [&] {
    if (p_ == end_ || !is_digit(*p_)) fail("a digit is expected here");
    while (p_ != end_ && is_digit(*p_)) ++p_;
  };
  bool negative = *p_ == '-', whole = true;
  if (negative) ++p_;
  if (p_ != end_ && *p_ == '0' && p_ + 1 != end_ && is_digit(p_[1]))
    fail("a number with a leading zero");
  digits();
  if (p_ != end_ && *p_ == '.') {
    whole = false;
    ++p_;
    digits();
  }
  if (p_ != end_ && (*p_ == 'e' || *p_ == 'E')) {
    whole = false;
    ++p_;
    if (p_ != end_ && (*p_ == '+' || *p_ == '-')) ++p_;
    digits();
  }
  Number n{};
  std::errc error{};
  if (!whole) {
    n.kind = Number::Float;
    error = std::from_chars(start, p_, n.d).ec;
    if (error != std::errc()) fail_at(start, "a number out of the range of a double");
  } else if (negative) {
    n.kind = Number::Signed;
    error = std::from_chars(start, p_, n.i).ec;
  } else {
    n.kind = Number::Unsigned;
    error = std::from_chars(start, p_, n.u).ec;
  }
  if (error != std::errc()) {
    if (is_row_) fail_at(start, "an integer of more than 64 bits: write it in quotes");
    // Hugging Face writes model_max_length 10^30: such a number is a double, and json_int refuses
    // it.
    n.kind = Number::Float;
    if (std::from_chars(start, p_, n.d).ec != std::errc())
      fail_at(start, "a number out of the range of a double");
  }
  return n;
}

std::uint64_t JsonScanner::whole_number() {
  if (peek() != 0) fail("a whole number is expected here");
  const char* start = p_;
  Number n = number();
  if (n.kind != Number::Unsigned) fail_at(start, "a whole number, not negative, is expected here");
  return n.u;
}

void JsonScanner::skip() {
  switch (peek()) {
    case '{':
      return object([&](const std::string&) { skip(); });
    case '[':
      return array([&] { skip(); });
    case '"':
      string();
      return;
    case 't':
    case 'f':
      boolean();
      return;
    case 'n':
      return null();
    default:
      number();
  }
}

void JsonScanner::end() {
  skip_space();
  if (p_ != end_) fail("something follows after the end of the JSON value");
}

}  // namespace lk
