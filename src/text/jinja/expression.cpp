// Parses expressions of the template language by recursive descent; precedence is Jinja2's.
#include <algorithm>
#include <charconv>

#include "tensor/error.h"
#include "text/jinja/parser.h"

namespace lk::jinja {

using Kind = Expression::Kind;

bool TokenReader::skip_name(std::string_view text) {
  if (!is_name(text)) return false;
  next();
  return true;
}
bool TokenReader::skip_op(std::string_view text) {
  if (!is_op(text)) return false;
  next();
  return true;
}
void TokenReader::expect_op(std::string_view text) {
  if (!skip_op(text)) fail(concat("expected \"", text, "\", found \"", now().text, "\""));
}
std::string TokenReader::expect_name() {
  if (!is(Token::Kind::Name)) fail(concat("expected a name, found \"", now().text, "\""));
  return next().text;
}
void TokenReader::fail(const std::string& what) const {
  throw InputError(concat("line ", line(), ": ", what));
}

namespace {

template <class... Args>
ExpressionPtr make(TokenReader& r, int line, Kind kind, Args... args) {
  auto e = std::make_unique<Expression>();
  e->kind = kind;
  e->line = line;
  (e->args.push_back(std::move(args)), ...);
  for (const ExpressionPtr& arg : e->args)
    if (arg) e->depth = std::max(e->depth, arg->depth + 1);
  if (e->depth > kMaxTreeDepth) r.fail("nested too deeply");
  return e;
}

void add(TokenReader& r, Expression& e, ExpressionPtr arg) {
  e.depth = std::max(e.depth, arg->depth + 1);
  if (e.depth > kMaxTreeDepth) r.fail("nested too deeply");
  e.args.push_back(std::move(arg));
}

ExpressionPtr parse_unary(TokenReader& r, bool filters = true);
ExpressionPtr parse_postfix(TokenReader& r, ExpressionPtr e);

// Parses positional, then named arguments up to ")"; the "(" has been read.
void parse_arguments(TokenReader& r, Expression& call) {
  while (!r.skip_op(")")) {
    if (r.is_op("**")) r.fail("arguments from a dict, **, are not in this subset of Jinja");
    const int line = r.line();
    if (r.skip_op("*")) {
      add(r, call, make(r, line, Kind::Spread, parse_expression(r)));
    } else if (r.is(Token::Kind::Name) && r.ahead().kind == Token::Kind::Operator &&
               r.ahead().text == "=") {
      std::string name = r.expect_name();
      r.expect_op("=");
      ExpressionPtr value = parse_expression(r);
      call.depth = std::max(call.depth, value->depth + 1);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.named.empty()) r.fail("a positional argument follows a named one");
      add(r, call, parse_expression(r));
    }
    if (!r.is_op(")")) r.expect_op(",");
  }
}

ExpressionPtr literal(TokenReader& r, int line, Value value) {
  ExpressionPtr e = make(r, line, Kind::Literal);
  e->value = std::move(value);
  return e;
}

ExpressionPtr parse_number(TokenReader& r) {
  const int line = r.line();
  const bool real = r.is(Token::Kind::Real);
  const std::string text = r.next().text;
  const char *begin = text.data(), *end = begin + text.size();
  std::int64_t whole = 0;
  double value = 0;
  const auto result =
      real ? std::from_chars(begin, end, value) : std::from_chars(begin, end, whole);
  if (result.ec != std::errc() || result.ptr != end) r.fail("the number " + text + " is too large");
  return real ? literal(r, line, value) : literal(r, line, whole);
}

ExpressionPtr parse_primary(TokenReader& r) {
  const TokenReader::Deeper deeper(r);
  const int line = r.line();
  if (r.is(Token::Kind::Name)) {
    const std::string name = r.next().text;
    if (name == "true" || name == "True") return literal(r, line, true);
    if (name == "false" || name == "False") return literal(r, line, false);
    if (name == "none" || name == "None") return literal(r, line, None{});
    ExpressionPtr e = make(r, line, Kind::Name);
    e->name = name;
    return e;
  }
  if (r.is(Token::Kind::String)) {
    std::string text;
    while (r.is(Token::Kind::String)) text += r.next().text;
    return literal(r, line, Value::text(text));
  }
  if (r.is(Token::Kind::Integer) || r.is(Token::Kind::Real)) return parse_number(r);
  if (r.skip_op("(")) {
    if (r.skip_op(")")) return make(r, line, Kind::Tuple);
    ExpressionPtr e = parse_tuple(r);
    r.expect_op(")");
    return e;
  }
  if (r.skip_op("[")) {
    ExpressionPtr e = make(r, line, Kind::List);
    while (!r.skip_op("]")) {
      add(r, *e, parse_expression(r));
      if (!r.is_op("]")) r.expect_op(",");
    }
    return e;
  }
  if (r.skip_op("{")) {
    ExpressionPtr e = make(r, line, Kind::Dict);
    while (!r.skip_op("}")) {
      add(r, *e, parse_expression(r));
      r.expect_op(":");
      add(r, *e, parse_expression(r));
      if (!r.is_op("}")) r.expect_op(",");
    }
    return e;
  }
  r.fail(concat("expected an expression, found \"", r.now().text, "\""));
}

ExpressionPtr parse_subscript(TokenReader& r, ExpressionPtr e) {
  const int line = r.line();
  ExpressionPtr part[3];
  int colons = 0;
  while (!r.is_op("]")) {
    if (r.skip_op(":")) {
      if (++colons > 2) r.fail("a slice has at most two colons");
    } else {
      if (part[colons]) r.fail(concat("unexpected \"", r.now().text, "\" in a subscript"));
      part[colons] = parse_expression(r);
      if (r.is_op(",")) r.fail("a subscript of several values is not supported");
    }
  }
  r.expect_op("]");
  if (colons == 0) {
    if (!part[0]) r.fail("a subscript is empty");
    return make(r, line, Kind::Item, std::move(e), std::move(part[0]));
  }
  return make(r, line, Kind::Slice, std::move(e), std::move(part[0]), std::move(part[1]),
              std::move(part[2]));
}

ExpressionPtr parse_postfix(TokenReader& r, ExpressionPtr e) {
  for (;;) {
    const int line = r.line();
    if (r.skip_op(".")) {
      if (r.is(Token::Kind::Integer)) {
        e = make(r, line, Kind::Item, std::move(e), parse_number(r));
      } else {
        e = make(r, line, Kind::Attribute, std::move(e));
        e->name = r.expect_name();
      }
    } else if (r.skip_op("[")) {
      e = parse_subscript(r, std::move(e));
    } else if (r.skip_op("(")) {
      e = make(r, line, Kind::Call, std::move(e));
      parse_arguments(r, *e);
    } else {
      return e;
    }
  }
}

ExpressionPtr parse_test(TokenReader& r, ExpressionPtr e) {
  const int line = r.line();
  const bool negated = r.skip_name("not");
  e = make(r, line, Kind::Test, std::move(e));
  e->name = r.expect_name();
  if (!test_exists(e->name)) r.fail("there is no test \"" + e->name + "\" in this subset of Jinja");
  if (r.skip_op("(")) {
    parse_arguments(r, *e);
  } else if (r.is(Token::Kind::Name) || r.is(Token::Kind::String) || r.is(Token::Kind::Integer) ||
             r.is(Token::Kind::Real) || r.is_op("(") || r.is_op("[") || r.is_op("{")) {
    if (r.is_name("is")) r.fail("tests can't be chained");
    bool ends = false;
    for (const char* word : {"else", "or", "and", "if", "in", "not"})
      ends = ends || r.is_name(word);
    if (!ends) add(r, *e, parse_postfix(r, parse_primary(r)));
  }
  return negated ? make(r, line, Kind::Not, std::move(e)) : std::move(e);
}

ExpressionPtr parse_unary(TokenReader& r, bool filters) {
  const TokenReader::Deeper deeper(r);
  const int line = r.line();
  ExpressionPtr e;
  if (r.skip_op("-"))
    e = make(r, line, Kind::Negative, parse_unary(r, false));
  else if (r.skip_op("+"))
    e = make(r, line, Kind::Positive, parse_unary(r, false));
  else
    e = parse_primary(r);
  e = parse_postfix(r, std::move(e));
  while (filters) {
    if (r.skip_op("|"))
      e = parse_filters(r, std::move(e));
    else if (r.skip_name("is"))
      e = parse_test(r, std::move(e));
    else
      break;
  }
  return e;
}

// Parses a level of operators that group from the left.
template <class Next>
ExpressionPtr parse_binary(TokenReader& r, std::initializer_list<const char*> ops, Next&& next) {
  ExpressionPtr left = next(r);
  for (;;) {
    const int line = r.line();
    auto found = std::find_if(ops.begin(), ops.end(), [&](const char* op) { return r.is_op(op); });
    if (found == ops.end()) return left;
    r.next();
    left = make(r, line, Kind::Binary, std::move(left), next(r));
    left->name = *found;
  }
}

ExpressionPtr parse_power(TokenReader& r) {
  return parse_binary(r, {"**"}, [](TokenReader& t) { return parse_unary(t); });
}
ExpressionPtr parse_product(TokenReader& r) {
  return parse_binary(r, {"*", "/", "//", "%"}, parse_power);
}
ExpressionPtr parse_concat(TokenReader& r) {
  const int line = r.line();
  ExpressionPtr first = parse_product(r);
  if (!r.is_op("~")) return first;
  ExpressionPtr e = make(r, line, Kind::Concat, std::move(first));
  while (r.skip_op("~")) add(r, *e, parse_product(r));
  return e;
}
ExpressionPtr parse_sum(TokenReader& r) { return parse_binary(r, {"+", "-"}, parse_concat); }

ExpressionPtr parse_compare(TokenReader& r) {
  const int line = r.line();
  ExpressionPtr first = parse_sum(r);
  ExpressionPtr e;
  for (;;) {
    std::string op;
    for (const char* sign : {"==", "!=", "<", "<=", ">", ">="})
      if (r.is_op(sign)) op = sign;
    if (!op.empty()) {
      r.next();
    } else if (r.skip_name("in")) {
      op = "in";
    } else if (r.is_name("not") && r.ahead().kind == Token::Kind::Name && r.ahead().text == "in") {
      r.next(), r.next();
      op = "not in";
    } else {
      return e ? std::move(e) : std::move(first);
    }
    if (!e) e = make(r, line, Kind::Compare, std::move(first));
    e->operators.push_back(op);
    add(r, *e, parse_sum(r));
  }
}

ExpressionPtr parse_not(TokenReader& r) {
  const TokenReader::Deeper deeper(r);
  const int line = r.line();
  if (r.skip_name("not")) return make(r, line, Kind::Not, parse_not(r));
  return parse_compare(r);
}

ExpressionPtr parse_and(TokenReader& r) {
  ExpressionPtr left = parse_not(r);
  for (int line = r.line(); r.skip_name("and"); line = r.line())
    left = make(r, line, Kind::And, std::move(left), parse_not(r));
  return left;
}

ExpressionPtr parse_or(TokenReader& r) {
  ExpressionPtr left = parse_and(r);
  for (int line = r.line(); r.skip_name("or"); line = r.line())
    left = make(r, line, Kind::Or, std::move(left), parse_and(r));
  return left;
}

}  // namespace

ExpressionPtr parse_expression(TokenReader& r, bool conditional) {
  const TokenReader::Deeper deeper(r);
  ExpressionPtr e = parse_or(r);
  for (int line = r.line(); conditional && r.skip_name("if"); line = r.line()) {
    ExpressionPtr condition = parse_or(r);
    ExpressionPtr otherwise;
    if (r.skip_name("else")) otherwise = parse_expression(r);
    e = make(r, line, Kind::Conditional, std::move(condition), std::move(e), std::move(otherwise));
  }
  return e;
}

ExpressionPtr parse_tuple(TokenReader& r, bool conditional) {
  const int line = r.line();
  ExpressionPtr first = parse_expression(r, conditional);
  if (!r.is_op(",")) return first;
  ExpressionPtr e = make(r, line, Kind::Tuple, std::move(first));
  while (r.skip_op(",")) {
    if (r.is_op(")") || r.is(Token::Kind::BlockEnd) || r.is(Token::Kind::VariableEnd)) break;
    add(r, *e, parse_expression(r, conditional));
  }
  return e;
}

ExpressionPtr parse_filters(TokenReader& r, ExpressionPtr input) {
  for (;;) {
    const int line = r.line();
    const std::string name = r.expect_name();
    if (!filter_exists(name)) r.fail("there is no filter \"" + name + "\" in this subset of Jinja");
    input = make(r, line, Kind::Filter, std::move(input));
    input->name = name;
    if (r.skip_op("(")) parse_arguments(r, *input);
    if (!r.skip_op("|")) return input;
  }
}

}  // namespace lk::jinja
