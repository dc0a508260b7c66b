// A parsed chat template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace lk::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    Literal,    // value
    Name,       // name
    List,       // args
    Tuple,      // args
    Dict,       // args: key, value, key, value, ...
    Attribute,  // args[0].name
    Item,       // args[0][args[1]]
    Slice,      // args[0][args[1]:args[2]:args[3]], each of the three may be null
    Call,       // args[0](args[1..], named)
    Filter,     // args[0] | name(args[1..], named)
    Test,       // args[0] is name(args[1..])
    Not,
    Negative,
    Positive,
    And,
    Or,
    Binary,       // args[0] name args[1]: + - * / // % **
    Concat,       // args joined as text
    Compare,      // args[0] operators[0] args[1] operators[1] args[2] ...
    Spread,       // *args[0], among the arguments of a call
    Conditional,  // args[1] if args[0] else args[2] (may be null)
  } kind;
  int line = 0;
  int depth = 1;  // levels of the tree from here down
  std::string name;
  Value value;
  std::vector<ExpressionPtr> args;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    Data,         // text
    Output,       // value
    If,           // branches: conditions[i] -> bodies[i]; one more body is the else
    For,          // names in value if conditions[0] (may be null): bodies[0], else bodies[1]
    Set,          // names = value; with `space`, space.names[0] = value
    SetBlock,     // names[0] = what bodies[0] writes, through filters (value, may be null)
    FilterBlock,  // what bodies[0] writes, through filters (value)
    With,         // names = conditions, for bodies[0]
    Macro,        // text(names = defaults): bodies[0]
    Generation,   // bodies[0], which the assistant wrote
    Break,
    Continue,
  } kind;
  int line = 0;
  std::string text;
  std::string space;
  std::vector<std::string> names;
  ExpressionPtr value;
  std::vector<ExpressionPtr> conditions;
  std::vector<ExpressionPtr> defaults;  // defaults of a macro's last parameters
  std::vector<Body> bodies;
};

// Expressions and statements nested deeper than this are refused.
inline constexpr int kMaxTreeDepth = 200;

// Parses a template. InputError "line N: ..." for what is not Jinja, and, by name, for Jinja that
// is not in this subset.
Body parse(std::string_view source);

// Whether a filter or test of this name exists (filters.cpp, tests.cpp).
bool filter_exists(std::string_view name);
bool test_exists(std::string_view name);

}  // namespace lk::jinja
