// Pre-tokenizers: cut text into the pieces that byte pairs are merged within. Each is a
// hand-written scanner equal to its published pattern: linear time, no regular expressions.
#pragma once

#include <string_view>

#include "io/utf8.h"
#include "text/unicode.h"

namespace lk {

// The patterns, first alternative that matches wins; a ' ?' is one ASCII space:
//   Gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   SmolLm  every numeric character alone, then Gpt2 on what lies between
//   Llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
//           | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   Qwen2   Llama3's with \p{N} for \p{N}{1,3}
//   Whole   nothing is cut (sentencepiece)
enum class PreTokenizer { Gpt2, SmolLm, Llama3, Qwen2, Whole };

// The name of a pre-tokenizer: "gpt2", "smollm", "llama3", "qwen2", "whole".
const char* to_string(PreTokenizer kind);

namespace pre {

// Reads characters and their classes of valid UTF-8.
struct Reader {
  explicit Reader(std::string_view text)
      : s(text.data()), n(text.size()), classes(char_classes()) {}
  unsigned char byte(std::size_t i) const { return static_cast<unsigned char>(s[i]); }
  std::size_t next(std::size_t i) const { return i + utf8_length(byte(i)); }
  std::uint8_t cls(std::size_t i) const {
    return byte(i) < 0x80 ? classes[byte(i)] : classes[utf8_decode(s + i)];
  }
  bool letter(std::size_t i) const { return i < n && (cls(i) & kLetter); }
  // Whether the character at i is neither space, letter nor number.
  bool other(std::size_t i) const { return i < n && !(cls(i) & (kSpace | kLetter | kNumber)); }
  std::size_t end_of(std::size_t i, std::uint8_t bit) const {
    while (i < n && (cls(i) & bit)) i = next(i);
    return i;
  }
  std::size_t end_of_other(std::size_t i) const {
    while (other(i)) i = next(i);
    return i;
  }
  bool newline(std::size_t i) const { return i < n && (s[i] == '\r' || s[i] == '\n'); }

  const char* s;
  std::size_t n;
  const std::uint8_t* classes;
};

// Bytes of 's 't 'm 'd 're 've 'll at i, 0 if none. `fold`: any case, and U+017F (long s) is an s.
inline std::size_t contraction(const Reader& r, std::size_t i, bool fold) {
  if (r.s[i] != '\'' || i + 1 >= r.n) return 0;
  auto lower = [&](std::size_t at) {
    const char c = at < r.n ? r.s[at] : '\0';
    return fold && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = lower(i + 1), b = lower(i + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return 3;
  if (fold && r.byte(i + 1) == 0xC5 && i + 2 < r.n && r.byte(i + 2) == 0xBF) return 3;
  return 0;
}

// \s+(?!\S)|\s+ at a space: the run of spaces, but its last one is left to what follows, if
// anything does and the run has more than one.
inline std::size_t end_of_spaces(const Reader& r, std::size_t i) {
  std::size_t last = i, end = i;
  while (end < r.n && (r.cls(end) & kSpace)) {
    last = end;
    end = r.next(end);
  }
  return end == r.n || last == i ? end : last;
}

template <class Emit>
void gpt2(std::string_view text, std::size_t base, Emit&& emit) {
  const Reader r(text);
  for (std::size_t i = 0, end = 0; i < r.n; i = end) {
    if (std::size_t k = contraction(r, i, false); k != 0) {
      end = i + k;
    } else {
      const std::size_t body = r.s[i] == ' ' && i + 1 < r.n ? i + 1 : i;
      const std::uint8_t c = r.cls(body);
      if (c & kLetter)
        end = r.end_of(body, kLetter);
      else if (c & kNumber)
        end = r.end_of(body, kNumber);
      else if (!(c & kSpace))
        end = r.end_of_other(body);
      else
        end = end_of_spaces(r, i);
    }
    emit(base + i, base + end);
  }
}

template <class Emit>
void smollm(std::string_view text, Emit&& emit) {
  const Reader r(text);
  std::size_t begin = 0;
  for (std::size_t i = 0; i < r.n;) {
    const std::size_t next = r.next(i);
    if (r.cls(i) & kNumeric) {
      if (begin < i) gpt2(text.substr(begin, i - begin), begin, emit);
      emit(i, next);
      begin = next;
    }
    i = next;
  }
  if (begin < r.n) gpt2(text.substr(begin), begin, emit);
}

template <class Emit>
void llama3(std::string_view text, int max_digits, Emit&& emit) {
  const Reader r(text);
  for (std::size_t i = 0, end = 0; i < r.n; i = end) {
    const std::uint8_t c = r.cls(i);
    if (std::size_t k = contraction(r, i, true); k != 0) {
      end = i + k;
    } else if (c & kLetter) {
      end = r.end_of(i, kLetter);
    } else if (c & kNumber) {
      end = i;
      for (int digits = 0; digits < max_digits && end < r.n && (r.cls(end) & kNumber); ++digits)
        end = r.next(end);
    } else if (!r.newline(i) && r.letter(r.next(i))) {
      end = r.end_of(r.next(i), kLetter);
    } else if (const std::size_t body = r.s[i] == ' ' ? i + 1 : i; r.other(body)) {
      end = r.end_of_other(body);
      while (r.newline(end)) ++end;
    } else {
      // \s*[\r\n]+ : up to and with the last newline of this run of spaces.
      std::size_t after_newline = 0;
      for (std::size_t j = i; j < r.n && (r.cls(j) & kSpace); j = r.next(j))
        if (r.newline(j)) after_newline = j + 1;
      end = after_newline != 0 ? after_newline : end_of_spaces(r, i);
    }
    emit(i, end);
  }
}

}  // namespace pre

// Calls emit(begin, end) for each piece of valid UTF-8, in order, covering all of it.
template <class Emit>
void pre_tokenize(PreTokenizer kind, std::string_view text, Emit&& emit) {
  switch (kind) {
    case PreTokenizer::Gpt2:
      return pre::gpt2(text, 0, emit);
    case PreTokenizer::SmolLm:
      return pre::smollm(text, emit);
    case PreTokenizer::Llama3:
      return pre::llama3(text, 3, emit);
    case PreTokenizer::Qwen2:
      return pre::llama3(text, 1, emit);
    case PreTokenizer::Whole:
      if (!text.empty()) emit(std::size_t{0}, text.size());
      return;
  }
}

}  // namespace lk
