// Evaluates expressions.
#include "text/jinja/eval.h"

#include <cmath>

#include "tensor/error.h"
#include "text/jinja/deeper.h"

namespace lk::jinja {

using Kind = Expression::Kind;

namespace {

Value whole_arithmetic(char op, std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  bool wraps = false;
  switch (op) {
    case '+':
      wraps = __builtin_add_overflow(a, b, &out);
      break;
    case '-':
      wraps = __builtin_sub_overflow(a, b, &out);
      break;
    case '*':
      wraps = __builtin_mul_overflow(a, b, &out);
      break;
    default:  // '/' and '%': floored, as Python's // and %
      if (b == 0) fail("division by zero");
      if (b == -1) {
        wraps = op == '/' && a == INT64_MIN;
        out = op == '/' && !wraps ? -a : 0;
      } else {
        out = op == '/' ? a / b : a % b;
        if (a % b != 0 && (a < 0) != (b < 0)) out += op == '/' ? -1 : b;
      }
  }
  if (wraps) fail("a number is too large");
  return out;
}

Value power(const Value& a, const Value& b) {
  if (!a.is_integer() || !b.is_integer() || b.integer() < 0) return std::pow(a.real(), b.real());
  std::int64_t out = 1;
  for (std::int64_t i = 0; i < b.integer(); ++i) {
    if (out == 0 || a.integer() == 1) break;
    if (a.integer() == -1) return b.integer() % 2 == 0 ? std::int64_t{1} : std::int64_t{-1};
    if (__builtin_mul_overflow(out, a.integer(), &out)) fail("a number is too large");
  }
  return out;
}

Value repeat(const Value& what, std::int64_t times, Budget& budget) {
  const auto n = static_cast<std::uint64_t>(std::max<std::int64_t>(times, 0));
  if (n > (1u << 20)) fail("* repeats more than a million times");
  budget.work(n);
  if (const Text* text = what.as_text()) {
    budget.bytes(n * text->s.size());
    Text out;
    for (std::uint64_t i = 0; i < n; ++i) out.append(*text);
    return Value::text(std::move(out));
  }
  if (!what.as_list()->is_written()) fail("a " + type_name(what) + " can't be repeated");
  budget.work(n * what.as_list()->items.size());
  budget.bytes(n * what.as_list()->items.size() * sizeof(Value));
  std::vector<Value> items;
  for (std::uint64_t i = 0; i < n; ++i)
    items.insert(items.end(), what.as_list()->items.begin(), what.as_list()->items.end());
  return make_list(std::move(items), budget, what.as_list()->kind);
}

Value binary(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  for (const Value* v : {&a, &b})
    if (v->is<Undefined>()) fail(std::get<Undefined>(v->v).what + " is undefined");
  if (a.is_number() && b.is_number()) {
    const bool whole = a.is_integer() && b.is_integer();
    if (op == "**") return power(a, b);
    if (whole && op != "/") return whole_arithmetic(op[0], a.integer(), b.integer());
    const double x = a.real(), y = b.real();
    if (op == "+") return x + y;
    if (op == "-") return x - y;
    if (op == "*") return x * y;
    if (y == 0) fail("division by zero");
    if (op == "/") return x / y;
    if (op == "//") return std::floor(x / y);
    const double rest = std::fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
  }
  if (op == "+" && a.as_text() && b.as_text()) {
    budget.bytes(a.as_text()->s.size() + b.as_text()->s.size());
    Text out = *a.as_text();
    out.append(*b.as_text());
    return Value::text(std::move(out));
  }
  if (op == "+" && a.as_list() && b.as_list() && a.as_list()->is_written() &&
      a.as_list()->kind == b.as_list()->kind) {
    const std::size_t n = a.as_list()->items.size() + b.as_list()->items.size();
    budget.work(n);
    budget.bytes(n * sizeof(Value));
    std::vector<Value> items = a.as_list()->items;
    items.insert(items.end(), b.as_list()->items.begin(), b.as_list()->items.end());
    return make_list(std::move(items), budget, a.as_list()->kind);
  }
  if (op == "*" && (a.as_text() || a.as_list()) && b.is_integer())
    return repeat(a, b.integer(), budget);
  if (op == "*" && (b.as_text() || b.as_list()) && a.is_integer())
    return repeat(b, a.integer(), budget);
  fail(concat("\"", op, "\" of a ", type_name(a), " and a ", type_name(b)));
}

}  // namespace

Value Evaluator::lookup(const std::string& name) {
  for (Scope* s = scope_; s != nullptr; s = s->outer) {
    budget_.work(1 + s->names.size() / 8);
    for (const auto& [n, value] : s->names)
      if (n == name) return value;
  }
  using enum Callable::Kind;
  if (name == "range") return Callable{Range};
  if (name == "namespace") return Callable{Namespace};
  if (name == "dict") return Callable{Dict};
  if (name == "raise_exception") return Callable{RaiseException};
  for (const char* other : {"joiner", "cycler", "lipsum", "self"})
    if (name == other) fail(concat(name, " is not in this subset of Jinja"));
  return Value::undefined(quoted(name));
}

Arguments Evaluator::arguments(const Expression& e) {
  Arguments args;
  for (std::size_t i = 1; i < e.args.size(); ++i) {
    if (e.args[i]->kind != Kind::Spread) {
      args.positional.push_back(evaluate(*e.args[i]));
      continue;
    }
    for (Value& v : iterate(evaluate(*e.args[i]->args[0]), budget_))
      args.positional.push_back(std::move(v));
  }
  for (const auto& [name, value] : e.named) args.named.emplace_back(name, evaluate(*value));
  return args;
}

Value Evaluator::evaluate(const Expression& e) {
  const Deeper deeper(depth_);
  budget_.work();
  line_ = e.line;
  Value v = evaluate_here(e);
  line_ = e.line;
  return v;
}

Value Evaluator::evaluate_here(const Expression& e) {
  auto arg = [&](std::size_t i) { return evaluate(*e.args[i]); };
  switch (e.kind) {
    case Kind::Literal:
      return e.value;
    case Kind::Name:
      return lookup(e.name);
    case Kind::List:
    case Kind::Tuple: {
      std::vector<Value> items;
      for (const auto& a : e.args) items.push_back(evaluate(*a));
      return make_list(std::move(items), budget_,
                       e.kind == Kind::Tuple ? List::Kind::Tuple : List::Kind::Plain);
    }
    case Kind::Dict: {
      std::vector<std::pair<std::string, Value>> items;
      for (std::size_t i = 0; i < e.args.size(); i += 2)
        items.emplace_back(expect_text(arg(i), "a dict's key").s, arg(i + 1));
      return make_dict(std::move(items), budget_);
    }
    case Kind::Attribute:
      return attribute(arg(0), e.name, budget_);
    case Kind::Item: {
      const Value value = arg(0);
      return item(value, arg(1), budget_);
    }
    case Kind::Slice: {
      const Value value = arg(0);
      Value bounds[3];
      for (std::size_t i = 0; i < 3; ++i)
        if (e.args[i + 1]) bounds[i] = arg(i + 1);
      return slice(value, &bounds[0], &bounds[1], &bounds[2], budget_);
    }
    case Kind::Call:
      return call(e);
    case Kind::Filter:
      return apply(e, arg(0));
    case Kind::Test: {
      const Value value = arg(0);
      return apply_test(e.name, value, arguments(e), budget_);
    }
    case Kind::Not:
      return !truth(arg(0));
    case Kind::Negative:
    case Kind::Positive: {
      const Value v = arg(0);
      if (!v.is_number()) fail("a sign before a " + type_name(v));
      if (!v.is_integer()) return e.kind == Kind::Negative ? -v.real() : v.real();
      return whole_arithmetic(e.kind == Kind::Negative ? '-' : '+', 0, v.integer());
    }
    case Kind::And: {
      Value v = arg(0);
      return truth(v) ? arg(1) : v;
    }
    case Kind::Or: {
      Value v = arg(0);
      return truth(v) ? v : arg(1);
    }
    case Kind::Binary: {
      const Value left = arg(0);
      return binary(e.name, left, arg(1), budget_);
    }
    case Kind::Concat: {
      Text out;
      for (const auto& a : e.args) out.append(to_text(evaluate(*a), budget_));
      return Value::text(std::move(out));
    }
    case Kind::Spread:
      break;  // arguments() reads it
    case Kind::Compare:
      return compare(e);
    case Kind::Conditional:
      if (truth(arg(0))) return arg(1);
      return e.args[2] ? arg(2) : Value::undefined("an if without an else");
  }
  return None{};
}

Value Evaluator::apply(const Expression& filter, const Value& input) {
  const Arguments args = arguments(filter);
  line_ = filter.line;
  return apply_filter(filter.name, input, args, budget_);
}

Value Evaluator::compare(const Expression& e) {
  Value left = evaluate(*e.args[0]);
  for (std::size_t i = 0; i < e.operators.size(); ++i) {
    const std::string& op = e.operators[i];
    Value right = evaluate(*e.args[i + 1]);
    const bool holds = op == "=="   ? equal(left, right, budget_)
                       : op == "!=" ? !equal(left, right, budget_)
                       : op == "<"  ? less(left, right, budget_)
                       : op == ">"  ? less(right, left, budget_)
                       : op == "<=" ? !less(right, left, budget_)
                       : op == ">=" ? !less(left, right, budget_)
                       : op == "in" ? contains(right, left, budget_)
                                    : !contains(right, left, budget_);
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::call(const Expression& e) {
  const Expression& callee = *e.args[0];
  if (callee.kind == Kind::Attribute) {
    const Value self = evaluate(*callee.args[0]);
    if (has_method(self, callee.name)) return call_method(self, callee.name, arguments(e), budget_);
    const Value found = attribute(self, callee.name, budget_);
    fail(concat("a ", type_name(self), " has no method \"", callee.name,
                "\" in this subset of Jinja"));
  }
  const Value f = evaluate(callee);
  if (f.is<Undefined>()) fail(std::get<Undefined>(f.v).what + " is undefined");
  if (!f.is<Callable>()) fail("a " + type_name(f) + " can't be called");
  const Arguments args = arguments(e);
  line_ = e.line;
  return call_function(std::get<Callable>(f.v), args);
}

Value Evaluator::call_function(const Callable& f, const Arguments& args) {
  switch (f.kind) {
    case Callable::Kind::Macro:
      return call_macro(*static_cast<const Statement*>(f.macro), args);
    case Callable::Kind::RaiseException:
      args.only("raise_exception", {"message"});
      fail(args.get(0, "message") ? to_text(*args.get(0, "message"), budget_).s
                                  : "exception raised");
    case Callable::Kind::Range: {
      args.only("range", {"start", "stop", "step"});
      if (args.positional.empty()) fail("range lacks an argument");
      const bool one = args.positional.size() == 1;
      std::int64_t at = one ? 0 : integer_or(&args.positional[0], 0, "range's start");
      const std::int64_t end = integer_or(&args.positional[one ? 0 : 1], 0, "range's stop");
      const std::int64_t step = integer_or(args.get(2, "step"), 1, "range's step");
      if (step == 0) fail("range's step is zero");
      std::vector<Value> items;
      while (step > 0 ? at < end : at > end) {
        if (items.size() % 1024 == 0) budget_.work(1024);
        if (items.size() == 100'000) fail("a range of more than 100000 numbers");  // Jinja's limit
        items.push_back(at);
        if (__builtin_add_overflow(at, step, &at)) break;
      }
      return make_list(std::move(items), budget_, List::Kind::Range);
    }
    case Callable::Kind::Dict:
      if (!args.positional.empty()) fail("dict() of a value is not in this subset of Jinja");
      return make_dict(args.named, budget_);
    case Callable::Kind::Namespace:
      if (!args.positional.empty()) fail("namespace() of a value is not in this subset of Jinja");
      budget_.work(args.named.size());
      budget_.bytes(sizeof(Namespace) + args.named.size() * 2 * sizeof(Value));
      namespaces_.push_back({args.named});
      return &namespaces_.back();
  }
  return None{};
}

}  // namespace lk::jinja
