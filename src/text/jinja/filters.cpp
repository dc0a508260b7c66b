// Jinja2's filters, with transformers' tojson.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/search.h"
#include "text/jinja/sequence_filters.h"
#include "text/jinja/tree.h"
#include "text/unicode.h"
#include "text/white_space.h"

namespace lk::jinja {

namespace {

using Filter = Value (*)(const Value&, const Arguments&, Budget&);
using PlainFilter = Value (*)(const Value&, Budget&);  // one that takes no arguments

Value default_value(const Value& input, const Arguments& args, Budget&) {
  args.only("default", {"default_value", "boolean"});
  const bool empty = args.get(1, "boolean") != nullptr && truth(*args.get(1, "boolean"));
  if (!input.is<Undefined>() && !(empty && !truth(input))) return input;
  return args.get(0, "default_value") != nullptr ? *args.get(0, "default_value") : Value::text("");
}

Value tojson(const Value& input, const Arguments& args, Budget& budget) {
  args.only("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  auto flag = [&](std::size_t i, const char* name) {
    return args.get(i, name) != nullptr && truth(*args.get(i, name));
  };
  style.ascii = flag(0, "ensure_ascii");
  style.sort_keys = flag(3, "sort_keys");
  if (const Value* indent = args.get(1, "indent"); indent != nullptr && !indent->is<None>()) {
    const std::int64_t n = integer_or(indent, 0, "tojson's indent");
    if (n < 0 || n > 16) fail("tojson's indent must be 0 to 16");
    style.indent = static_cast<int>(n);
    style.item = ",";
  }
  if (const Value* pair = args.get(2, "separators"); pair != nullptr && !pair->is<None>()) {
    const List* list = pair->as_list();
    if (list == nullptr || list->items.size() != 2) fail("tojson's separators must be two strings");
    const Text& item = expect_text(list->items[0], "a separator");
    const Text& key = expect_text(list->items[1], "a separator");
    budget.bytes(item.s.size() + key.s.size());
    style.item = item.s;
    style.key = key.s;
  }
  return Value::text(to_json(input, style, budget));
}

Value to_integer(const Value& input, const Arguments& args, Budget& budget) {
  args.only("int", {"default"});
  const Value otherwise = args.get(0, "default") ? *args.get(0, "default") : Value(std::int64_t{0});
  if (input.is_integer()) return input.integer();
  if (input.is<double>()) {
    const double whole = std::trunc(input.real());
    if (!(std::abs(whole) < 9.2e18)) return otherwise;
    return static_cast<std::int64_t>(whole);
  }
  if (input.as_text() == nullptr) return otherwise;
  budget.work(input.as_text()->s.size() / 4);
  const std::string s = strip(*input.as_text(), nullptr, true, true, budget).s;
  std::int64_t value = 0;
  const char* begin = s.data() + (s.starts_with('+') ? 1 : 0);
  const auto whole = std::from_chars(begin, s.data() + s.size(), value);
  if (!s.empty() && whole.ec == std::errc() && whole.ptr == s.data() + s.size()) return value;
  double real = 0;
  const auto end = std::from_chars(begin, s.data() + s.size(), real);
  if (s.empty() || end.ec != std::errc() || end.ptr != s.data() + s.size() ||
      !(std::abs(real) < 9.2e18))
    return otherwise;
  return static_cast<std::int64_t>(real);
}

Value to_real(const Value& input, const Arguments& args, Budget& budget) {
  args.only("float", {"default"});
  if (input.is_number()) return input.real();
  if (const Text* text = input.as_text()) {
    budget.work(text->s.size() / 4);
    const std::string s = strip(*text, nullptr, true, true, budget).s;
    double value = 0;
    const auto end = std::from_chars(s.data(), s.data() + s.size(), value);
    if (!s.empty() && end.ec == std::errc() && end.ptr == s.data() + s.size()) return value;
  }
  return args.get(0, "default") != nullptr ? *args.get(0, "default") : Value(0.0);
}

Value indent(const Value& input, const Arguments& args, Budget& budget) {
  args.only("indent", {"width", "first", "blank"});
  const std::int64_t n = integer_or(args.get(0, "width"), 4, "indent's width");
  if (n < 0 || n > 256) fail("indent's width must be 0 to 256");
  const bool first = args.get(1, "first") != nullptr && truth(*args.get(1, "first"));
  const bool blank = args.get(2, "blank") != nullptr && truth(*args.get(2, "blank"));
  const std::string spaces(static_cast<std::size_t>(n), ' ');
  Text text = to_text(input, budget), out;
  text.append("\n");  // as Jinja does, so that a trailing newline is a line of its own
  const Value lines = call_method(Value::text(std::move(text)), "splitlines", {}, budget);
  bool begin = true;
  for (const Value& line : lines.as_list()->items) {
    const Text& t = *line.as_text();
    if (!begin) out.append("\n");
    budget.bytes(spaces.size() + t.s.size() + 1);
    if (begin ? first : blank || !t.s.empty()) out.append(spaces);
    out.append(t);
    begin = false;
  }
  return Value::text(std::move(out));
}

// Jinja's title, unlike Python's, leaves an apostrophe's letter alone.
Value title(const Value& input, const Arguments& args, Budget& budget) {
  args.only("title", {});
  Text text = change_case(to_text(input, budget), Case::Lower, budget);
  bool start = true;
  for (char& c : text.s) {
    if (start && c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
    start = std::string_view("-({[<").find(c) != std::string_view::npos ||
            is_space(static_cast<unsigned char>(c));
  }
  return Value::text(std::move(text));
}

// Runs of what Python's \w matches.
Value wordcount(const Value& input, const Arguments& args, Budget& budget) {
  args.only("wordcount", {});
  const Text text = to_text(input, budget);
  budget.work(text.s.size() / 2);
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t i = 0; i < text.s.size();
       i += utf8_length(static_cast<unsigned char>(text.s[i]))) {
    const bool word = text.s[i] == '_' ||
                      (char_classes()[utf8_decode(text.s.data() + i)] & (kLetter | kNumber)) != 0;
    words += word && !inside;
    inside = word;
  }
  return words;
}

Value center(const Value& input, const Arguments& args, Budget& budget) {
  args.only("center", {"width"});
  const std::int64_t width = integer_or(args.get(0, "width"), 80, "center's width");
  const Text text = to_text(input, budget);
  const std::int64_t room = width - count_characters(text.s, budget);
  if (room <= 0) return Value::text(text);
  budget.bytes(text.s.size() + static_cast<std::uint64_t>(room));
  const std::int64_t left = room / 2 + (room & width & 1);  // as Python rounds it
  Text out;
  out.append(std::string(static_cast<std::size_t>(left), ' '));
  out.append(text);
  out.append(std::string(static_cast<std::size_t>(room - left), ' '));
  return Value::text(std::move(out));
}

Value first(const Value& input, Budget& budget) {
  const List* list = input.as_list();
  const std::size_t next = list != nullptr && list->taken ? *list->taken : 0;
  const auto items = iterate(input, budget);
  if (items.empty()) return Value::undefined("the first of an empty sequence");
  if (list != nullptr && list->taken) *list->taken = next + 1;  // a generator keeps the others
  return items.front();
}

Value last(const Value& input, Budget& budget) {
  if (input.as_list() && input.as_list()->taken) fail("a generator has no last item");
  const auto items = iterate(input, budget);
  return items.empty() ? Value::undefined("the last of an empty sequence") : items.back();
}

Value magnitude(const Value& v, Budget&) {
  if (!v.is_number()) fail("abs of a " + type_name(v));
  if (!v.is_integer()) return Value(std::abs(v.real()));
  if (v.integer() == INT64_MIN) fail("a number is too large");
  return Value(std::abs(v.integer()));
}

Value items_of(const Value& v, Budget& b) {
  if (!v.is<Undefined>() && v.as_dict() == nullptr) fail("items of a " + type_name(v));
  return make_list(
      v.is<Undefined>() ? std::vector<Value>{} : iterate(call_method(v, "items", {}, b), b), b,
      List::Kind::Generator);
}

Value reverse(const Value& v, Budget& b) {
  auto items = iterate(v, b);
  std::reverse(items.begin(), items.end());
  if (v.as_text()) return Value::text(join(items, {}, b));
  const bool generator = v.as_list() && v.as_list()->taken;  // this alone becomes a list
  return make_list(std::move(items), b, generator ? List::Kind::Plain : List::Kind::Generator);
}

template <Case how>
Value cased(const Value& input, const Arguments& args, Budget& budget) {
  args.only("upper, lower and capitalize", {});
  return Value::text(change_case(to_text(input, budget), how, budget));
}

const std::map<std::string_view, PlainFilter>& plain_filters() {
  static const std::map<std::string_view, PlainFilter> all = {
      {"length", [](const Value& v, Budget& b) { return Value(length(v, b)); }},
      {"count", [](const Value& v, Budget& b) { return Value(length(v, b)); }},
      {"first", first},
      {"last", last},
      {"list", [](const Value& v, Budget& b) { return make_list(iterate(v, b), b); }},
      {"string", [](const Value& v, Budget& b) { return Value::text(to_text(v, b)); }},
      {"safe", [](const Value& v, Budget&) { return v; }},
      {"abs", magnitude},
      {"items", items_of},
      {"reverse", reverse},
  };
  return all;
}

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> all = {
      {"trim",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("trim", {"chars"});
         const Value* chars = a.get(0, "chars");
         const std::string* set = chars == nullptr || chars->is<None>()
                                      ? nullptr
                                      : &expect_text(*chars, "trim's characters").s;
         return Value::text(strip(to_text(v, b), set, true, true, b));
       }},
      {"tojson", tojson},
      {"join",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("join", {"d", "attribute"});
         const Text between = a.get(0, "d") ? to_text(*a.get(0, "d"), b) : Text{};
         auto items = iterate(v, b);
         if (const Value* name = a.get(1, "attribute"))
           for (Value& each : items) each = path(each, *name, b);
         return Value::text(join(items, between, b));
       }},
      {"upper", cased<Case::Upper>},
      {"lower", cased<Case::Lower>},
      {"capitalize", cased<Case::Capital>},
      {"title", title},
      {"min", [](const Value& v, const Arguments& a, Budget& b) { return extreme(v, a, true, b); }},
      {"max",
       [](const Value& v, const Arguments& a, Budget& b) { return extreme(v, a, false, b); }},
      {"batch", batch},
      {"groupby", groupby},
      {"wordcount", wordcount},
      {"center", center},
      {"default", default_value},
      {"d", default_value},
      {"map", map},
      {"select",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, false, true, b); }},
      {"reject",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, false, false, b); }},
      {"selectattr",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, true, true, b); }},
      {"rejectattr",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, true, false, b); }},
      {"int", to_integer},
      {"float", to_real},
      {"replace",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("replace", {"old", "new", "count"});
         if (!a.get(0, "old") || !a.get(1, "new")) fail("replace lacks an argument");
         return Value::text(replace(to_text(v, b), to_text(*a.get(0, "old"), b),
                                    to_text(*a.get(1, "new"), b),
                                    integer_or(a.get(2, "count"), -1, "count"), b));
       }},
      {"dictsort", dictsort},
      {"sort", sort},
      {"unique", unique},
      {"indent", indent},
  };
  return all;
}

}  // namespace

bool filter_exists(std::string_view name) {
  return filters().contains(name) || plain_filters().contains(name);
}

Value apply_filter(std::string_view name, const Value& input, const Arguments& args,
                   Budget& budget) {
  budget.work();
  const auto plain = plain_filters().find(name);
  if (plain == plain_filters().end()) return filters().at(name)(input, args, budget);
  args.only(name, {});
  return plain->second(input, budget);
}

}  // namespace lk::jinja
