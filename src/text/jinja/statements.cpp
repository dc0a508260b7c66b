// Executes statements, and the template as a whole.
#include <algorithm>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/jinja/deeper.h"

namespace lk::jinja {

using StatementKind = Statement::Kind;

namespace {

// Puts another value in a place for as long as it lives.
template <class T>
class Swap {
 public:
  Swap(T& place, T value) : place_(place), old_(std::exchange(place, std::move(value))) {}
  ~Swap() { place_ = std::move(old_); }
  Swap(const Swap&) = delete;

 private:
  T& place_;
  T old_;
};

}  // namespace

Evaluator::Evaluator(const Variables& variables, Budget& budget) : budget_(budget) {
  root_.names = variables;
}

Rendered Evaluator::run(const Body& body) {
  Text out;
  out_ = &out;
  try {
    execute(body);
  } catch (const OverBudget& e) {
    throw OverBudget(concat("line ", line_, ": ", e.what()));
  } catch (const InputError& e) {
    throw InputError(concat("line ", line_, ": ", e.what()));
  }
  return {std::move(out), std::move(generated_)};
}

void Evaluator::write(const Text& text) {
  budget_.bytes(text.s.size());
  out_->append(text);
}

void Evaluator::set(const std::string& name, Value value) {
  budget_.work(1 + scope_->names.size() / 8);
  for (auto& [n, v] : scope_->names)
    if (n == name) {
      v = std::move(value);
      return;
    }
  budget_.bytes(name.size() + sizeof(Value));
  scope_->names.emplace_back(name, std::move(value));
}

Evaluator::Flow Evaluator::execute(const Body& body) {
  for (const auto& s : body)
    if (const Flow flow = execute(*s); flow != Flow::Go) return flow;
  return Flow::Go;
}

Evaluator::Flow Evaluator::execute(const Statement& s) {
  const Deeper deeper(depth_);
  budget_.work();
  line_ = s.line;
  switch (s.kind) {
    case StatementKind::Data:
      budget_.bytes(s.text.size());
      out_->append(s.text);
      return Flow::Go;
    case StatementKind::Output:
      write(to_text(evaluate(*s.value), budget_));
      return Flow::Go;
    case StatementKind::If:
      for (std::size_t i = 0; i < s.conditions.size(); ++i)
        if (truth(evaluate(*s.conditions[i]))) return execute(s.bodies[i]);
      return s.bodies.size() > s.conditions.size() ? execute(s.bodies.back()) : Flow::Go;
    case StatementKind::For:
      return run_for(s);
    case StatementKind::Set:
      run_set(s);
      return Flow::Go;
    case StatementKind::SetBlock:
      set(s.names[0], filtered(s));
      return Flow::Go;
    case StatementKind::FilterBlock:
      write(to_text(filtered(s), budget_));
      return Flow::Go;
    case StatementKind::With: {
      std::vector<Value> values;
      for (const auto& value : s.conditions) values.push_back(evaluate(*value));
      Scope scope{{}, scope_};
      const Swap<Scope*> inside(scope_, &scope);
      for (std::size_t i = 0; i < values.size(); ++i) set(s.names[i], std::move(values[i]));
      return execute(s.bodies[0]);
    }
    case StatementKind::Macro:
      if (scope_ != &root_) fail("a macro inside a loop or a macro is not in this subset of Jinja");
      set(s.text, Callable{Callable::Kind::Macro, &s});
      return Flow::Go;
    case StatementKind::Generation: {
      if (capturing_) fail("{% generation %} inside a macro or a set block");
      const std::size_t begin = out_->s.size();
      Scope scope{{}, scope_};  // as transformers', it is a call: what is set inside stays inside
      const Swap<Scope*> inside(scope_, &scope);
      const Flow flow = execute(s.bodies[0]);
      if (!generated_.empty() && generated_.back().second > begin)
        fail("{% generation %} is nested");
      generated_.emplace_back(begin, out_->s.size());
      return flow;
    }
    case StatementKind::Break:
      return Flow::Break;
    case StatementKind::Continue:
      return Flow::Continue;
  }
  return Flow::Go;
}

Evaluator::Flow Evaluator::run_for(const Statement& s) {
  Scope scope;
  auto bind = [&](const Value& value) {
    scope.names.clear();
    if (s.names.size() == 1) {
      scope.names.emplace_back(s.names[0], value);
      return;
    }
    const std::vector<Value> parts = iterate(value, budget_);
    if (parts.size() != s.names.size())
      fail(concat("an item of ", parts.size(), " parts for ", s.names.size(), " names"));
    for (std::size_t i = 0; i < parts.size(); ++i) scope.names.emplace_back(s.names[i], parts[i]);
  };
  std::vector<Value> items = iterate(evaluate(*s.value), budget_);
  scope.outer = scope_;
  const Swap<Scope*> inside(scope_, &scope);
  std::vector<Value> all;  // with a condition: before it
  std::vector<bool> wanted;
  std::size_t checked = 0;
  auto wants = [&](const Value& value) {
    budget_.work(2);
    bind(value);
    return truth(evaluate(*s.conditions[0]));
  };
  if (s.conditions[0]) {
    all = std::exchange(items, {});
    for (const Value& value : all) {
      wanted.push_back(wants(value));
      if (wanted.back()) items.push_back(value);
    }
  }
  // Jinja asks for each item only when its turn comes, unless the body looks ahead: what it answers
  // then must be the same.
  auto ask_again = [&](bool to_the_end) {
    while (checked < all.size()) {
      const bool was = wanted[checked];
      if (wants(all[checked++]) != was)
        fail("the condition of a loop changes with what the loop does");
      if (was && !to_the_end) return;
    }
  };
  Value list = make_list(std::move(items), budget_);
  auto shared = std::get<std::shared_ptr<const List>>(list.v);
  bool finished = false;  // Jinja runs the else unless an iteration reached its end
  for (std::size_t i = 0; i < shared->items.size(); ++i) {
    line_ = s.line;
    budget_.work(4);
    budget_.bytes(sizeof(Loop));
    ask_again(false);
    bind(shared->items[i]);
    scope.names.emplace_back("loop", std::make_shared<Loop>(Loop{shared, i}));
    const Flow flow = execute(s.bodies[0]);
    finished = finished || flow == Flow::Go;
    if (flow == Flow::Break) {
      checked = all.size();
      break;
    }
  }
  ask_again(true);
  scope.names.clear();
  return finished || s.bodies.size() == 1 ? Flow::Go : execute(s.bodies[1]);
}

void Evaluator::run_set(const Statement& s) {
  Value value = evaluate(*s.value);
  if (!s.space.empty()) {
    const Value space = lookup(s.space);
    if (!space.is<Namespace*>()) fail(s.space + " is not a namespace");
    if (s.names[0].starts_with('_')) fail("a namespace takes no name that starts with _");
    auto& items = std::get<Namespace*>(space.v)->items;
    budget_.work(1 + items.size());
    for (auto& [name, old] : items)
      if (name == s.names[0]) {
        old = std::move(value);
        return;
      }
    budget_.bytes(sizeof(Value) + s.names[0].size());
    items.emplace_back(s.names[0], std::move(value));
    return;
  }
  if (s.names.size() == 1) return set(s.names[0], std::move(value));
  const std::vector<Value> parts = iterate(value, budget_);
  if (parts.size() != s.names.size())
    fail(concat(parts.size(), " values for ", s.names.size(), " names"));
  for (std::size_t i = 0; i < parts.size(); ++i) set(s.names[i], parts[i]);
}

// What a block writes, in a scope of its own, through its filters.
Value Evaluator::filtered(const Statement& s) {
  Scope scope{{}, scope_};
  const Swap<Scope*> inside(scope_, &scope);
  Value value = Value::text(capture(s.bodies[0]));
  // The innermost filter is the one without an input.
  std::vector<const Expression*> filters;
  for (const Expression* f = s.value.get(); f != nullptr; f = f->args[0].get())
    filters.push_back(f);
  for (auto f = filters.rbegin(); f != filters.rend(); ++f) value = apply(**f, value);
  return value;
}

Text Evaluator::capture(const Body& body) {
  Text text;
  const Swap<Text*> to(out_, &text);
  const Swap<bool> inside(capturing_, true);
  execute(body);
  return text;
}

Value Evaluator::call_macro(const Statement& macro, const Arguments& args) {
  const Deeper deeper(depth_);
  const std::size_t n = macro.names.size();
  if (args.positional.size() > n)
    fail(concat("the macro ", macro.text, " takes ", n, " arguments"));
  budget_.work(1 + n + n * args.named.size() / 4);
  for (const auto& [name, value] : args.named)
    if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end())
      fail(concat("the macro ", macro.text, " has no parameter \"", name, "\""));
  Scope scope;
  scope.outer = &root_;
  const Swap<Scope*> inside(scope_, &scope);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t first_default = n - macro.defaults.size();
    if (const Value* given = args.get(i, macro.names[i]))
      scope.names.emplace_back(macro.names[i], *given);
    else if (i >= first_default)
      scope.names.emplace_back(macro.names[i], evaluate(*macro.defaults[i - first_default]));
    else
      scope.names.emplace_back(macro.names[i], Value::undefined(quoted(macro.names[i])));
  }
  return Value::text(capture(macro.bodies[0]));
}

struct Template::Tree {
  Body body;
};

Template::Template(std::string_view source, const std::string& where)
    : tree_(std::make_unique<Tree>()), where_(where) {
  if (source.size() > kMaxSource)
    throw InputError(
        concat(where, ": ", source.size(), " bytes; at most ", kMaxSource, " are read"));
  if (const std::size_t ok = utf8_valid_prefix(source); ok != source.size())
    throw InputError(concat(where, ": not valid UTF-8 at byte ", ok));
  try {
    tree_->body = parse(source);
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
}
Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

Rendered Template::render(const Variables& variables, std::uint64_t work,
                          std::uint64_t bytes) const {
  Budget budget(work, bytes);
  Evaluator evaluator(variables, budget);
  try {
    return evaluator.run(tree_->body);
  } catch (const OverBudget& e) {
    throw OverBudget(where_ + ": " + e.what());
  } catch (const InputError& e) {
    throw InputError(where_ + ": " + e.what());
  }
}

}  // namespace lk::jinja
