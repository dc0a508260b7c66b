#include "text/jinja/parser.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk::jinja {

namespace {

using StatementKind = Statement::Kind;
using StatementPtr = std::unique_ptr<Statement>;

class Parser {
 public:
  explicit Parser(std::string_view source) : r_(tokenize(source)) {}

  Body whole() {
    Body body = parse_body({});
    if (!r_.is(Token::Kind::End)) r_.fail("unexpected end of a block");
    return body;
  }

 private:
  static StatementPtr make(StatementKind kind, int line) {
    auto s = std::make_unique<Statement>();
    s->kind = kind;
    s->line = line;
    return s;
  }

  void end_block() {
    if (!r_.is(Token::Kind::BlockEnd))
      r_.fail(concat("expected the end of the block, found \"", r_.now().text, "\""));
    r_.next();
  }

  // Reads statements up to the block that starts with one of `ends`; its name is then the next
  // token.
  Body parse_body(const std::vector<std::string>& ends) {
    const TokenReader::Deeper deeper(r_);
    Body body;
    for (;;) {
      const int line = r_.line();
      if (r_.is(Token::Kind::End)) {
        if (!ends.empty()) r_.fail("{% " + ends.back() + " %} is missing");
        return body;
      }
      if (r_.is(Token::Kind::Data)) {
        body.push_back(make(StatementKind::Data, line));
        body.back()->text = r_.next().text;
      } else if (r_.is(Token::Kind::VariableBegin)) {
        r_.next();
        body.push_back(make(StatementKind::Output, line));
        body.back()->value = parse_tuple(r_);
        if (!r_.is(Token::Kind::VariableEnd))
          r_.fail(concat("expected \"}}\", found \"", r_.now().text, "\""));
        r_.next();
      } else {
        r_.next();  // BlockBegin
        if (std::any_of(ends.begin(), ends.end(), [&](auto& end) { return r_.is_name(end); }))
          return body;
        body.push_back(parse_block());
      }
    }
  }

  StatementPtr parse_block() {
    const int line = r_.line();
    const std::string name = r_.expect_name();
    if (name == "if") return parse_if(line);
    if (name == "for") return parse_for(line);
    if (name == "set") return parse_set(line);
    if (name == "macro") return parse_macro(line);
    if (name == "generation") {
      StatementPtr s = make(StatementKind::Generation, line);
      finish(*s, "endgeneration");
      return s;
    }
    if (name == "filter") {
      StatementPtr s = make(StatementKind::FilterBlock, line);
      s->value = parse_filters(r_, nullptr);
      const int loops = std::exchange(loops_, 0);
      finish(*s, "endfilter");
      loops_ = loops;
      return s;
    }
    if (name == "with") {
      StatementPtr s = make(StatementKind::With, line);
      while (!r_.is(Token::Kind::BlockEnd)) {
        if (!s->names.empty()) r_.expect_op(",");
        s->names.push_back(r_.expect_name());
        r_.expect_op("=");
        s->conditions.push_back(parse_expression(r_));
      }
      finish(*s, "endwith");
      return s;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) r_.fail("{% " + name + " %} outside a loop");
      end_block();
      return make(name == "break" ? StatementKind::Break : StatementKind::Continue, line);
    }
    r_.fail("{% " + name + " %} is not in this subset of Jinja");
  }

  // The end of a block's head, its body, and the block that ends it.
  void finish(Statement& s, const char* end) {
    end_block();
    s.bodies.push_back(parse_body({end}));
    r_.next();
    end_block();
  }

  StatementPtr parse_if(int line) {
    StatementPtr s = make(StatementKind::If, line);
    for (bool more = true; more;) {
      s->conditions.push_back(parse_tuple(r_, true));
      end_block();
      s->bodies.push_back(parse_body({"elif", "else", "endif"}));
      more = r_.skip_name("elif");
    }
    if (r_.skip_name("else")) {
      end_block();
      s->bodies.push_back(parse_body({"endif"}));
    }
    r_.next();
    end_block();
    return s;
  }

  std::vector<std::string> parse_names() {
    std::vector<std::string> names;
    const bool bracket = r_.skip_op("(");
    do names.push_back(r_.expect_name());
    while (r_.skip_op(","));
    if (bracket) r_.expect_op(")");
    return names;
  }

  StatementPtr parse_for(int line) {
    StatementPtr s = make(StatementKind::For, line);
    s->names = parse_names();
    if (!r_.skip_name("in")) r_.fail("\"in\" is missing in a for");
    s->value = parse_tuple(r_, false);
    s->conditions.push_back(r_.skip_name("if") ? parse_expression(r_) : nullptr);
    if (r_.is_name("recursive")) r_.fail("recursive loops are not in this subset of Jinja");
    end_block();
    ++loops_;
    s->bodies.push_back(parse_body({"else", "endfor"}));
    --loops_;
    if (r_.skip_name("else")) {
      end_block();
      s->bodies.push_back(parse_body({"endfor"}));
    }
    r_.next();
    end_block();
    return s;
  }

  StatementPtr parse_set(int line) {
    StatementPtr s = make(StatementKind::Set, line);
    s->names = parse_names();
    if (s->names.size() == 1 && r_.skip_op(".")) {
      s->space = s->names[0];
      s->names[0] = r_.expect_name();
    }
    if (r_.skip_op("=")) {
      s->value = parse_tuple(r_);
      end_block();
      return s;
    }
    if (s->names.size() != 1 || !s->space.empty()) r_.fail("a set block has one plain name");
    s->kind = StatementKind::SetBlock;
    if (r_.skip_op("|")) s->value = parse_filters(r_, nullptr);
    const int loops = std::exchange(loops_, 0);
    finish(*s, "endset");
    loops_ = loops;
    return s;
  }

  StatementPtr parse_macro(int line) {
    StatementPtr s = make(StatementKind::Macro, line);
    s->text = r_.expect_name();
    r_.expect_op("(");
    while (!r_.skip_op(")")) {
      s->names.push_back(r_.expect_name());
      if (r_.skip_op("="))
        s->defaults.push_back(parse_expression(r_));
      else if (!s->defaults.empty())
        r_.fail("a parameter without a default follows one with a default");
      if (!r_.is_op(")")) r_.expect_op(",");
    }
    const int loops = std::exchange(loops_, 0);
    finish(*s, "endmacro");
    loops_ = loops;
    return s;
  }

  TokenReader r_;
  int loops_ = 0;
};

}  // namespace

Body parse(std::string_view source) { return Parser(source).whole(); }

}  // namespace lk::jinja
