// Values of the chat-template language, and the budget that bounds what a template may do.
//
// Strings know which of their bytes came from the conversation ("marks"): every operation carries
// the marks along, so that the tokenizer can later tell what a person wrote from what the template
// wrote. Lists and dicts never change once made, as in Jinja2's immutable sandbox; so values hold
// no cycles and need no collector. Namespaces can change, and are owned by the render they live in.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensor/error.h"

namespace lk::jinja {

// A render used up what it may use.
struct OverBudget : InputError {
  using InputError::InputError;
};

// What one render may use; throws OverBudget, naming what was exceeded, when it is used up. Each
// operation pays for what it is about to do, before it does it: a step of work is some tens of
// nanoseconds, the time to evaluate a small expression, to look at 8 bytes, or to compare 32.
class Budget {
 public:
  Budget(std::uint64_t work, std::uint64_t bytes) : work_(work), bytes_(bytes) {}
  void work(std::uint64_t n = 1);
  void bytes(std::uint64_t n);  // bytes made: strings, list entries
 private:
  std::uint64_t work_, bytes_;
};

using Marks = std::vector<std::pair<std::size_t, std::size_t>>;  // byte ranges, sorted, disjoint

struct Text {
  std::string s;  // valid UTF-8
  Marks marks;
  void append(const Text& other) { append(other, 0, other.s.size()); }
  void append(const Text& other, std::size_t begin, std::size_t end);
  void append(std::string_view plain) { s += plain; }
  void append_marked(std::string_view content);
  Text part(std::size_t begin, std::size_t end) const;
  bool marked(std::size_t at) const;
};

struct Undefined {
  std::string what;  // the subject of "... is undefined": "'name'"
};
struct None {};
class Value;
struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Callable {  // a macro (an index into the template's), or a function of the engine
  enum class Kind { Macro, Range, Namespace, Dict, RaiseException } kind;
  const void* macro = nullptr;
};

class Value {
 public:
  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, Namespace*,
               std::shared_ptr<Loop>, Callable>
      v;
  Value() : v(None{}) {}
  template <class T>
  Value(T value) : v(std::move(value)) {}
  static Value text(Text t) { return {std::make_shared<const Text>(std::move(t))}; }
  static Value text(std::string_view s) { return text(Text{std::string(s), {}}); }
  static Value undefined(std::string what) { return {Undefined{std::move(what)}}; }

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(v);
  }
  const Text* as_text() const { return pointer<Text>(); }
  const List* as_list() const { return pointer<List>(); }
  const Dict* as_dict() const { return pointer<Dict>(); }
  bool is_number() const { return is<bool>() || is<std::int64_t>() || is<double>(); }
  bool is_integer() const { return is<bool>() || is<std::int64_t>(); }
  std::int64_t integer() const {  // the value of an integer or a bool
    return is<bool>() ? std::int64_t{std::get<bool>(v)} : std::get<std::int64_t>(v);
  }
  double real() const {
    return is<double>() ? std::get<double>(v) : static_cast<double>(integer());
  }

 private:
  template <class T>
  const T* pointer() const {
    auto p = std::get_if<std::shared_ptr<const T>>(&v);
    return p == nullptr ? nullptr : p->get();
  }
};

struct List {
  // What Python makes: only the first two are written as text or JSON, added and repeated. A
  // generator (what map, select, reverse, ... return) is always true, has no length and no places,
  // and gives each item once.
  enum class Kind { Plain, Tuple, Range, View, Generator } kind = Kind::Plain;
  std::vector<Value> items;
  std::shared_ptr<std::size_t> taken = {};  // of a generator: how many items it has given
  bool is_written() const { return kind == Kind::Plain || kind == Kind::Tuple; }
  bool group = false;  // a tuple of groupby, whose items have names too: grouper and list
  int depth = 1;
};
struct Dict {
  std::vector<std::pair<std::string, Value>> items;  // in the order of insertion, each key once
  int depth = 1;
  const Value* find(std::string_view key, Budget& budget) const;
};
struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};
struct Loop {
  std::shared_ptr<const List> items;
  std::size_t index0 = 0;
};

// Both make_list() and make_dict() count their entries and refuse values nested more than
// kMaxValueDepth deep.
inline constexpr int kMaxValueDepth = 64;
Value make_list(std::vector<Value> items, Budget& budget, List::Kind kind = List::Kind::Plain);
Value make_dict(std::vector<std::pair<std::string, Value>> items, Budget& budget);

// InputError; the evaluator adds the line. Texts of over 400 bytes are cut.
[[noreturn]] void fail(const std::string& what);
// A name in quotes, cut if it is long: values that are undefined carry theirs along.
std::string quoted(std::string_view name);

// Python's name of the type: "str", "int", "NoneType".
std::string type_name(const Value& v);
bool truth(const Value& v);
bool equal(const Value& a, const Value& b, Budget& budget);
// a < b as Python orders numbers, strings, lists; fails for other pairs.
bool less(const Value& a, const Value& b, Budget& budget);
// str() and repr() as Python writes them; json.dumps with ensure_ascii=False.
Text to_text(const Value& v, Budget& budget);
struct JsonStyle {
  int indent = -1;  // spaces a level; -1: all on one line
  std::string item = ", ", key = ": ";
  bool sort_keys = false, ascii = false;
};
Text to_json(const Value& v, const JsonStyle& style, Budget& budget);

}  // namespace lk::jinja
