// Parts of values: attributes, items, slices, iteration, membership.
#include <algorithm>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/search.h"

namespace lk::jinja {

void Arguments::only(std::string_view what, std::initializer_list<const char*> names) const {
  if (positional.size() > names.size())
    fail(concat(what, " takes at most ", names.size(), " arguments here"));
  for (const auto& [name, value] : named)
    if (std::none_of(names.begin(), names.end(),
                     [&, &n = name](auto* known) { return n == known; }))
      fail(concat(what, ": the argument \"", name, "\" is not known"));
}

const Value* Arguments::get(std::size_t i, std::string_view name) const {
  if (i < positional.size()) return &positional[i];
  for (const auto& [n, value] : named)
    if (n == name) return &value;
  return nullptr;
}

std::int64_t integer_or(const Value* value, std::int64_t otherwise, const char* what) {
  if (value == nullptr) return otherwise;
  if (!value->is_integer()) fail(std::string(what) + " must be an integer");
  return value->integer();
}

const Text& expect_text(const Value& value, const char* what) {
  const Text* text = value.as_text();
  if (text == nullptr) fail(concat(what, " must be a string, not ", type_name(value)));
  return *text;
}

namespace {

bool is_loop(const Value& v) { return v.is<std::shared_ptr<Loop>>(); }

Value loop_attribute(const Loop& loop, const std::string& name) {
  const auto n = std::ssize(loop.items->items), i = static_cast<std::int64_t>(loop.index0);
  auto at = [&](std::int64_t k) {
    return k < 0 || k >= n ? Value::undefined("there is no such item")
                           : loop.items->items[static_cast<std::size_t>(k)];
  };
  if (name == "index") return i + 1;
  if (name == "index0") return i;
  if (name == "revindex") return std::int64_t{n} - i;
  if (name == "revindex0") return std::int64_t{n} - i - 1;
  if (name == "first") return i == 0;
  if (name == "last") return i + 1 == n;
  if (name == "length") return std::int64_t{n};
  if (name == "depth") return std::int64_t{1};  // Jinja counts recursive loops only
  if (name == "depth0") return std::int64_t{0};
  if (name == "previtem") return at(i - 1);
  if (name == "nextitem") return at(i + 1);
  fail("loop." + name + " is not in this subset of Jinja");
}

[[noreturn]] void fail_undefined(const Value& v) {
  fail(std::get<Undefined>(v.v).what + " is undefined");
}

// The offsets of all characters of a text, and of its end.
std::vector<std::size_t> character_offsets(const Text& text, Budget& budget) {
  budget.work(text.s.size() / 4);
  budget.bytes(8 * text.s.size());
  std::vector<std::size_t> at;
  for (std::size_t i = 0; i < text.s.size();
       i += utf8_length(static_cast<unsigned char>(text.s[i])))
    at.push_back(i);
  at.push_back(text.s.size());
  return at;
}

}  // namespace

Value attribute(const Value& value, const std::string& name, Budget& budget) {
  budget.work();
  if (value.is<Undefined>()) fail_undefined(value);
  if (value.is<Callable>())
    fail("attributes of a function, as ." + name + ", are not in this subset of Jinja");
  if (is_loop(value) && name != "cycle")
    return loop_attribute(*std::get<std::shared_ptr<Loop>>(value.v), name);
  if (has_method(value, name)) fail("the method " + name + " can only be called");
  if (const Dict* dict = value.as_dict()) {
    for (const char* method :
         {"clear", "copy", "fromkeys", "pop", "popitem", "setdefault", "update"})
      if (name == method)
        fail(concat("the method ", name, " of a dict is not in this subset of Jinja; [\"", name,
                    "\"] is its entry"));
    if (const Value* found = dict->find(name, budget)) return *found;
  }
  if (const List* list = value.as_list(); list != nullptr && list->group) {
    if (name == "grouper") return list->items[0];
    if (name == "list") return list->items[1];
  }
  if (value.is<Namespace*>()) {
    const auto& items = std::get<Namespace*>(value.v)->items;
    budget.work(items.size() / 4);
    for (const auto& [key, found] : items)
      if (key == name) return found;
  }
  return Value::undefined(quoted(name) + " of a " + type_name(value));
}

Value item(const Value& value, const Value& key, Budget& budget) {
  budget.work();
  if (value.is<Undefined>()) fail_undefined(value);
  const std::string what = type_name(value);
  if (const Dict* dict = value.as_dict()) {
    const Text* name = key.as_text();
    const Value* found = name == nullptr ? nullptr : dict->find(name->s, budget);
    if (found != nullptr) return *found;
    return Value::undefined((name != nullptr ? quoted(name->s) : type_name(key)) + " of a dict");
  }
  const bool group = value.as_list() != nullptr && value.as_list()->group;
  if (const Text* name = key.as_text();
      name != nullptr && (group || !value.as_list()) && !value.as_text())
    return attribute(value, name->s, budget);
  if (!key.is_integer()) return Value::undefined("an item of a " + what);
  std::int64_t i = key.integer();
  if (const List* list = value.as_list(); list != nullptr && list->kind < List::Kind::View) {
    if (i < 0) i += std::ssize(list->items);
    if (i < 0 || i >= std::ssize(list->items)) return Value::undefined("an item of a " + what);
    return list->items[static_cast<std::size_t>(i)];
  }
  if (const Text* text = value.as_text()) {
    const auto at = character_offsets(*text, budget);
    if (i < 0) i += std::ssize(at) - 1;
    if (i < 0 || i + 1 >= std::ssize(at)) return Value::undefined("a character of a str");
    const auto k = static_cast<std::size_t>(i);
    return Value::text(text->part(at[k], at[k + 1]));
  }
  return Value::undefined("an item of a " + what);
}

Value slice(const Value& value, const Value* begin, const Value* end, const Value* step,
            Budget& budget) {
  auto bound = [&](const Value* v, const char* what) {
    return v == nullptr || v->is<None>() ? nullptr : (integer_or(v, 0, what), v);
  };
  begin = bound(begin, "a slice's begin"), end = bound(end, "a slice's end");
  step = bound(step, "a slice's step");
  if (value.is<Undefined>()) fail_undefined(value);
  const List* list = value.as_list();
  const Text* text = value.as_text();
  if ((list == nullptr || list->kind >= List::Kind::View) && text == nullptr)
    fail("a " + type_name(value) + " can't be sliced");
  std::vector<std::size_t> at;
  if (text != nullptr) at = character_offsets(*text, budget);
  const std::int64_t n = list != nullptr ? std::ssize(list->items) : std::ssize(at) - 1;
  const std::int64_t by = step == nullptr ? 1 : step->integer();
  if (by == 0) fail("a slice's step is zero");
  if (by == INT64_MIN) fail("a slice's step is too large");
  // As in Python, negative indices count from the end, and what lies outside is cut off.
  auto place = [&](const Value* v, std::int64_t otherwise) {
    if (v == nullptr) return otherwise;
    std::int64_t i = v->integer();
    if (i < 0) i = std::max(i + n, by > 0 ? std::int64_t{0} : std::int64_t{-1});
    return std::min(i, by > 0 ? n : n - 1);
  };
  const std::int64_t from = place(begin, by > 0 ? 0 : n - 1), to = place(end, by > 0 ? n : -1);
  if (text != nullptr && by == 1) {
    const auto a = static_cast<std::size_t>(from), b = static_cast<std::size_t>(std::max(from, to));
    budget.bytes(at[b] - at[a]);
    return Value::text(text->part(at[a], at[b]));
  }
  std::vector<Value> items;
  Text part;
  const std::int64_t jump = std::clamp(by, -n - 1, n + 1);
  for (std::int64_t i = from; by > 0 ? i < to : i > to; i += jump) {
    budget.work();
    const auto k = static_cast<std::size_t>(i);
    if (list != nullptr)
      items.push_back(list->items[k]);
    else
      part.append(*text, at[k], at[k + 1]);
  }
  if (list != nullptr) return make_list(std::move(items), budget, list->kind);
  budget.bytes(part.s.size());
  return Value::text(std::move(part));
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  if (value.is<Undefined>()) return {};
  std::vector<Value> out;
  auto pay = [&](std::size_t n) {
    budget.work(n);
    budget.bytes(n * sizeof(Value));
  };
  if (const List* list = value.as_list()) {
    const std::size_t from = list->taken ? std::exchange(*list->taken, list->items.size()) : 0;
    pay(list->items.size() - from);
    out.assign(list->items.begin() + static_cast<std::ptrdiff_t>(from), list->items.end());
  } else if (const Dict* dict = value.as_dict()) {
    pay(2 * dict->items.size());
    for (const auto& [key, unused] : dict->items) {
      budget.bytes(key.size() + sizeof(Text));
      out.push_back(Value::text(key));
    }
  } else if (const Text* text = value.as_text()) {
    const auto at = character_offsets(*text, budget);
    pay(2 * at.size());
    budget.bytes(at.size() * sizeof(Text));
    for (std::size_t i = 0; i + 1 < at.size(); ++i)
      out.push_back(Value::text(text->part(at[i], at[i + 1])));
  } else {
    fail("a " + type_name(value) + " can't be iterated over");
  }
  return out;
}

bool contains(const Value& container, const Value& what, Budget& budget) {
  if (const Text* text = container.as_text()) {
    return holds(text->s, expect_text(what, "what is looked for in a str").s, budget);
  }
  if (const Dict* dict = container.as_dict())
    return what.as_text() != nullptr && dict->find(what.as_text()->s, budget) != nullptr;
  const List* list = container.as_list();
  if (list == nullptr) return !iterate(container, budget).empty();  // undefined, or not iterable
  for (std::size_t i = list->taken ? *list->taken : 0; i < list->items.size(); ++i) {
    if (list->taken) *list->taken = i + 1;
    if (equal(list->items[i], what, budget)) return true;
  }
  return false;
}

std::int64_t length(const Value& value, Budget& budget) {
  if (value.is<Undefined>()) return 0;
  if (const List* list = value.as_list(); list != nullptr && !list->taken)
    return std::ssize(list->items);
  if (const Dict* dict = value.as_dict()) return std::ssize(dict->items);
  if (const Text* text = value.as_text()) return count_characters(text->s, budget);
  fail("a " + type_name(value) + " has no length");
}

}  // namespace lk::jinja
