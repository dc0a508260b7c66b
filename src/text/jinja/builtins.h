// What templates can do with values: filters, tests, methods of strings and dicts. Each does what
// Jinja2's or Python's of that name does, within the limits that errors state.
#pragma once

#include <initializer_list>

#include "text/jinja/value.h"

namespace lk::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  // Fails if there are more arguments than `names`, or named ones of other names; `what` is for the
  // message.
  void only(std::string_view what, std::initializer_list<const char*> names) const;
  const Value* get(std::size_t i, std::string_view name) const;  // null if not given
};

Value apply_filter(std::string_view name, const Value& input, const Arguments& args,
                   Budget& budget);
bool apply_test(std::string_view name, const Value& input, const Arguments& args, Budget& budget);
// Whether values of this type have such a method, which call_method() then runs.
bool has_method(const Value& self, std::string_view name);
Value call_method(const Value& self, const std::string& name, const Arguments& args,
                  Budget& budget);

// value.name and value[key]; undefined if there is none. Fails on an undefined value.
Value attribute(const Value& value, const std::string& name, Budget& budget);
Value item(const Value& value, const Value& key, Budget& budget);
// value[begin:end:step]; null for a bound that is not given.
Value slice(const Value& value, const Value* begin, const Value* end, const Value* step,
            Budget& budget);
// The values that a for loop runs over: items, keys, characters. Fails for what Python can't
// iterate.
std::vector<Value> iterate(const Value& value, Budget& budget);
bool contains(const Value& container, const Value& what, Budget& budget);
std::int64_t length(const Value& value, Budget& budget);

// An integer argument, or `otherwise` if it is not given.
std::int64_t integer_or(const Value* value, std::int64_t otherwise, const char* what);
const Text& expect_text(const Value& value, const char* what);
// Python's strip, of either end: takes off white space, or the characters of `chars` if not null.
Text strip(const Text& text, const std::string* chars, bool left, bool right, Budget& budget);
// Text in upper, lower and title case. Fails for letters beyond ASCII, whose cases are not known
// here.
enum class Case { Upper, Lower, Title, Capital };
Text change_case(const Text& text, Case how, Budget& budget);
Text replace(const Text& text, const Text& from, const Text& to, std::int64_t count,
             Budget& budget);
Text join(const std::vector<Value>& items, const Text& between, Budget& budget);

}  // namespace lk::jinja
