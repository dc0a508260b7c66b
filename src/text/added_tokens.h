// Added tokens: strings found in the text before anything else, such as <|im_end|>.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lk {

struct AddedToken {
  std::string content;
  std::int32_t id = -1;
  bool special = false;      // not text: left out by decode(skip_special), inert inside plain spans
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false, rstrip = false;  // takes the white space before, after it along
  bool normalized = false;              // looked for after normalisation instead of before
  bool in_vocabulary = false;  // the byte pair vocabulary has it too: a piece may become it
};

using ByteSpans = std::span<const std::pair<std::size_t, std::size_t>>;

// Finds added tokens in text, leftmost first, the longest of those that begin together. Matches do
// not overlap, but for the white space that a token takes along: as in tokenizers, a token of white
// space is found there once more, unless it takes along what stands before it.
class AddedTokenFinder {
 public:
  // No content may be empty or longer than this: it bounds the time of a search.
  static constexpr std::size_t kMaxBytes = 1024;

  // False if there is a token with this content already.
  bool add(const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Whether a token is found in `s`.
  bool inside(std::string_view s) const {
    bool found = false;
    split(
        s, {}, [](std::size_t, std::size_t) {},
        [&](std::size_t, std::size_t, std::int32_t) { found = true; });
    return found;
  }

  // Calls text(begin, end) for each stretch between tokens and token(begin, end, id) for each
  // token, in order. A special token that touches a `plain` span (sorted, disjoint) is not one: it
  // stays text.
  template <class Text, class Token>
  void split(std::string_view s, ByteSpans plain, Text&& text, Token&& token) const {
    std::size_t done = 0, stripped = 0;  // white space before it needs no second look
    for (std::size_t at = 0; at < s.size();) {
      Match m = match(s, at, plain);
      if (m.token == nullptr) {
        at = m.end;
        continue;
      }
      at = m.end;
      if (m.token->single_word && touches_word(s, m.begin, m.end)) continue;
      if (m.token->lstrip) m.begin = std::max(strip_before(s, m.begin, done), done);
      if (m.token->rstrip) m.end = stripped = strip_after(s, std::max(m.end, stripped));
      if (done < m.begin) text(done, m.begin);
      if (m.begin < m.end) token(m.begin, m.end, m.token->id);
      done = m.end;
    }
    if (done < s.size()) text(done, s.size());
  }

 private:
  struct Match {
    const AddedToken* token = nullptr;
    std::size_t begin = 0, end = 0;
  };
  struct Node {
    std::vector<std::pair<unsigned char, std::int32_t>> next;
    std::int32_t token = -1;  // the index of the added token that ends here, -1 for none
  };
  // The first match at or after `at`; without one, token is null and end is where to go on.
  Match match(std::string_view s, std::size_t at, ByteSpans plain) const;
  static bool touches_word(std::string_view s, std::size_t begin, std::size_t end);
  static std::size_t strip_before(std::string_view s, std::size_t begin, std::size_t floor);
  static std::size_t strip_after(std::string_view s, std::size_t end);

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  bool starts_[256] = {};  // whether any token begins with this byte
};

}  // namespace lk
