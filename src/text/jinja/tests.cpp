// Jinja2's tests ("x is defined").
#include <map>

#include "tensor/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/tree.h"

namespace lk::jinja {

namespace {

using Test = bool (*)(const Value&, const Value&, Budget&);
struct Entry {
  int arguments;
  Test test;
};

bool is_iterable(const Value& v) {
  return v.as_list() || v.as_dict() || v.as_text() || v.is<Undefined>();
}
bool is_sequence(const Value& v) {
  return is_iterable(v) && !(v.as_list() && v.as_list()->kind >= List::Kind::View);
}
std::int64_t whole(const Value& v) {
  if (!v.is_integer()) fail("a number test of a " + type_name(v));
  return v.integer();
}
bool is_case(const Value& v, Case how, Budget& b) {
  const Text& text = expect_text(v, "what is tested for its case");
  const Text other = change_case(text, how == Case::Upper ? Case::Lower : Case::Upper, b);
  return text.s == change_case(text, how, b).s && text.s != other.s;
}

const std::map<std::string_view, Entry>& tests() {
  using V = const Value&;
  using B = Budget&;
  static const std::map<std::string_view, Entry> all = [] {
    std::map<std::string_view, Entry> t = {
        {"defined", {0, [](V v, V, B) { return !v.is<Undefined>(); }}},
        {"undefined", {0, [](V v, V, B) { return v.is<Undefined>(); }}},
        {"none", {0, [](V v, V, B) { return v.is<None>(); }}},
        {"string", {0, [](V v, V, B) { return v.as_text() != nullptr; }}},
        {"mapping", {0, [](V v, V, B) { return v.as_dict() != nullptr; }}},
        {"sequence", {0, [](V v, V, B) { return is_sequence(v); }}},
        {"iterable", {0, [](V v, V, B) { return is_iterable(v); }}},
        {"number", {0, [](V v, V, B) { return v.is_number(); }}},
        {"integer", {0, [](V v, V, B) { return v.is<std::int64_t>(); }}},
        {"float", {0, [](V v, V, B) { return v.is<double>(); }}},
        {"boolean", {0, [](V v, V, B) { return v.is<bool>(); }}},
        {"true", {0, [](V v, V, B) { return v.is<bool>() && truth(v); }}},
        {"false", {0, [](V v, V, B) { return v.is<bool>() && !truth(v); }}},
        {"callable", {0, [](V v, V, B) { return v.is<Callable>(); }}},
        {"odd", {0, [](V v, V, B) { return whole(v) % 2 != 0; }}},
        {"even", {0, [](V v, V, B) { return whole(v) % 2 == 0; }}},
        {"upper", {0, [](V v, V, B b) { return is_case(v, Case::Upper, b); }}},
        {"lower", {0, [](V v, V, B b) { return is_case(v, Case::Lower, b); }}},
        {"divisibleby",
         {1,
          [](V v, V by, B) {
            const std::int64_t n = whole(by);
            if (n == 0) fail("divisibleby zero");
            return n == -1 || whole(v) % n == 0;
          }}},
        {"eq", {1, [](V v, V w, B b) { return equal(v, w, b); }}},
        {"ne", {1, [](V v, V w, B b) { return !equal(v, w, b); }}},
        {"lt", {1, [](V v, V w, B b) { return less(v, w, b); }}},
        {"gt", {1, [](V v, V w, B b) { return less(w, v, b); }}},
        {"le", {1, [](V v, V w, B b) { return !less(w, v, b); }}},
        {"ge", {1, [](V v, V w, B b) { return !less(v, w, b); }}},
        {"in", {1, [](V v, V w, B b) { return contains(w, v, b); }}},
    };
    t["equalto"] = t["=="] = t["eq"];
    t["!="] = t["ne"];
    t["<"] = t["lessthan"] = t["lt"];
    t[">"] = t["greaterthan"] = t["gt"];
    t["<="] = t["le"];
    t[">="] = t["ge"];
    return t;
  }();
  return all;
}

}  // namespace

bool test_exists(std::string_view name) { return tests().contains(name); }

bool apply_test(std::string_view name, const Value& input, const Arguments& args, Budget& budget) {
  const Entry& entry = tests().at(name);
  budget.work();
  if (!args.named.empty() || std::ssize(args.positional) != entry.arguments)
    fail(concat("the test \"", name, "\" takes ", entry.arguments, " arguments"));
  return entry.test(input, entry.arguments == 0 ? input : args.positional[0], budget);
}

}  // namespace lk::jinja
