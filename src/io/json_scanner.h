// JsonScanner: a strict pull parser over one JSON text in memory (RFC 8259). The checks that make
// hostile JSON harmless sit here; json.cpp builds nlohmann values with it, safetensors_header.cpp
// reads a header with it and builds none.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

class JsonScanner {
 public:
  static constexpr int kMaxDepth = 64;

  // What the text is. In a row of data NaN, Infinity and -Infinity are numbers too: JSON has none, but
  // pandas and Python's json write them for values that are missing. An integer of more than 64 bits
  // is refused there: what is read may be written into a text again, and not as another number.
  enum class Of { File, Row };

  // `text` and `where` must outlive the scanner. `where` names the file in messages.
  JsonScanner(std::string_view text, const std::string& where, Of of = Of::File);

  // What comes next: one of { [ " t f n, or 0 for a number ('-', a digit, or a word for one). Throws InputError
  // otherwise.
  char peek();

  // object() calls f(key) for each member, array() f() for each item: f must take exactly the
  // value. Callers check that keys are unique: they have to keep them anyway.
  template <class F>
  void object(F&& f) {
    enter('{');
    for (bool first = true; more('}', first); first = false) f(key());
    --depth_;
  }
  template <class F>
  void array(F&& f) {
    enter('[');
    for (bool first = true; more(']', first); first = false) f();
    --depth_;
  }
  // A string's UTF-8 value: escapes decoded, validated, surrogates paired.
  std::string string();
  // true, false and null, after peek() said t, f or n.
  bool boolean();
  void null();

  // A number without fraction or exponent that fits u64 or i64 is an integer and exact. Any other
  // is the nearest double (see Of for integers in rows); one beyond double's range is refused.
  struct Number {
    enum { Unsigned, Signed, Float } kind;
    std::uint64_t u = 0;  // Unsigned: the value
    std::int64_t i = 0;   // Signed (a minus sign): the value
    double d = 0;         // Float
  };
  Number number();
  // A whole number >= 0, written as one (not 1.0, not 1e0).
  std::uint64_t whole_number();

  // Takes any value and drops it. It is checked like any other, but for keys that occur twice.
  void skip();

  // Refuses anything after the value but white space.
  void end();

  // Throws InputError "where: byte N (line L): rule".
  [[noreturn]] void fail(const std::string& rule) const { fail_at(p_, rule); }

 private:
  void skip_space();
  void enter(char open);
  bool more(char close, bool first);
  std::string key();
  void literal(const char* word);
  bool take(std::string_view word);
  void escape(std::string& out);
  std::uint32_t four_hex_digits();
  [[noreturn]] void fail_at(const char* at, const std::string& rule) const;

  const char *begin_, *p_, *end_;
  const std::string& where_;
  bool is_row_;
  int depth_ = 0;
};

}  // namespace lk
