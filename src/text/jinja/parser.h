// The reader of tokens that both halves of the template parser share.
#pragma once

#include <string>
#include <vector>

#include "text/jinja/lexer.h"
#include "text/jinja/tree.h"

namespace lk::jinja {

class TokenReader {
 public:
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  int line() const { return now().line; }
  bool is(Token::Kind kind) const { return now().kind == kind; }
  bool is_name(std::string_view text) const { return is(Token::Kind::Name) && now().text == text; }
  bool is_op(std::string_view text) const {
    return is(Token::Kind::Operator) && now().text == text;
  }
  bool skip_name(std::string_view text);
  bool skip_op(std::string_view text);
  void expect_op(std::string_view text);
  std::string expect_name();
  [[noreturn]] void fail(const std::string& what) const;
  // Counts one more level of nesting while it lives.
  class Deeper {
   public:
    explicit Deeper(TokenReader& r) : r_(r) {
      if (++r_.depth_ > kMaxTreeDepth) r_.fail("nested too deeply");
    }
    ~Deeper() { --r_.depth_; }
    Deeper(const Deeper&) = delete;

   private:
    TokenReader& r_;
  };

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

// Reads an expression. Without `conditional`, "a if b" is read as a, as in the head of a for.
ExpressionPtr parse_expression(TokenReader& r, bool conditional = true);
// Reads an expression, or several with commas between: a tuple.
ExpressionPtr parse_tuple(TokenReader& r, bool conditional = true);
// Reads what follows "|", from the filter's name on; `input` may be null (in a set block).
ExpressionPtr parse_filters(TokenReader& r, ExpressionPtr input);

}  // namespace lk::jinja
