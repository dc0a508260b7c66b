// Runs a parsed template.
#pragma once

#include <deque>

#include "text/jinja/builtins.h"
#include "text/jinja/template.h"
#include "text/jinja/tree.h"

namespace lk::jinja {

class Evaluator {
 public:
  Evaluator(const Variables& variables, Budget& budget);
  // Throws InputError "line N: ...".
  Rendered run(const Body& body);

 private:
  struct Scope {
    std::vector<std::pair<std::string, Value>> names;
    Scope* outer = nullptr;
  };
  enum class Flow { Go, Break, Continue };
  class Deeper;

  // Statements (statements.cpp) write their text to out_.
  Flow execute(const Body& body);
  Flow execute(const Statement& s);
  Flow run_for(const Statement& s);
  void run_set(const Statement& s);
  Value filtered(const Statement& block);
  Text capture(const Body& body);
  Value call_macro(const Statement& macro, const Arguments& args);
  void write(const Text& text);
  void set(const std::string& name, Value value);

  // Expressions (eval.cpp).
  Value evaluate(const Expression& e);
  Value evaluate_here(const Expression& e);
  Value apply(const Expression& filter, const Value& input);
  Value lookup(const std::string& name);
  Value compare(const Expression& e);
  Value call(const Expression& e);
  Value call_function(const Callable& f, const Arguments& args);
  Arguments arguments(const Expression& e);

  Budget& budget_;
  Scope root_;
  Scope* scope_ = &root_;
  int depth_ = 0;  // how deep evaluation is nested
  int line_ = 1;   // the line of what is evaluated
  bool capturing_ = false;
  Text* out_ = nullptr;
  Marks generated_;
  std::deque<Namespace> namespaces_;
};

}  // namespace lk::jinja
