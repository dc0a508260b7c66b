// Jinja2's filters, with transformers' tojson.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "tensor/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/tree.h"
#include "text/white_space.h"

namespace lk::jinja {

namespace {

using Filter = Value (*)(const Value&, const Arguments&, Budget&);

// Follows "a.b" from an item, attribute by attribute, as map and selectattr do.
Value path(const Value& value, const Text& names, Budget& budget) {
  budget.work(1 + names.s.size() / 8);
  budget.bytes(names.s.size());
  Value at = value;
  for (std::size_t begin = 0; begin <= names.s.size();) {
    const std::size_t dot = std::min(names.s.find('.', begin), names.s.size());
    at = item(at, Value::text(names.s.substr(begin, dot - begin)), budget);
    begin = dot + 1;
  }
  return at;
}

// The arguments from the i-th on.
Arguments rest(const Arguments& args, std::size_t i) {
  Arguments out;
  for (; i < args.positional.size(); ++i) out.positional.push_back(args.positional[i]);
  return out;
}

Value sorted(std::vector<Value> items, const Arguments& args, bool by_attribute, Budget& budget) {
  const Value* attribute = by_attribute ? args.get(2, "attribute") : nullptr;
  const bool reverse = args.get(0, "reverse") != nullptr && truth(*args.get(0, "reverse"));
  const bool exact =
      args.get(1, "case_sensitive") != nullptr && truth(*args.get(1, "case_sensitive"));
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& v : items) {
    Value key = attribute != nullptr ? path(v, expect_text(*attribute, "attribute"), budget) : v;
    if (!exact && key.as_text())
      key = Value::text(change_case(*key.as_text(), Case::Lower, budget));
    keyed.emplace_back(std::move(key), std::move(v));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(b.first, a.first, budget) : less(a.first, b.first, budget);
  });
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
  return make_list(std::move(items), budget);
}

// The filters select, reject, selectattr and rejectattr.
Value select(const Value& input, const Arguments& args, bool by_attribute, bool want,
             Budget& budget) {
  const std::size_t first = by_attribute ? 1 : 0;
  if (args.positional.size() < first) fail("selectattr and rejectattr lack an attribute");
  std::vector<Value> out;
  for (const Value& v : iterate(input, budget)) {
    const Value tested =
        by_attribute ? path(v, expect_text(args.positional[0], "attribute"), budget) : v;
    bool holds = false;
    if (args.positional.size() > first) {
      const Text& test = expect_text(args.positional[first], "a test's name");
      if (!test_exists(test.s)) fail("there is no test \"" + test.s + "\" in this subset of Jinja");
      holds = apply_test(test.s, tested, rest(args, first + 1), budget);
    } else {
      holds = truth(tested);
    }
    if (holds == want) out.push_back(v);
  }
  return make_list(std::move(out), budget);
}

Value map(const Value& input, const Arguments& args, Budget& budget) {
  std::vector<Value> out;
  if (args.positional.empty()) {
    args.only("map", {"attribute", "default"});
    const Value* name = args.get(0, "attribute");
    if (name == nullptr) fail("map lacks an attribute or a filter");
    for (const Value& v : iterate(input, budget)) {
      Value found = path(v, expect_text(*name, "attribute"), budget);
      const Value* otherwise = args.get(1, "default");
      out.push_back(found.is<Undefined>() && otherwise != nullptr ? *otherwise : found);
    }
  } else {
    const Text& filter = expect_text(args.positional[0], "a filter's name");
    if (!filter_exists(filter.s) || filter.s == "map")
      fail("map by the filter \"" + filter.s + "\" is not in this subset of Jinja");
    Arguments more = rest(args, 1);
    more.named = args.named;
    for (const Value& v : iterate(input, budget))
      out.push_back(apply_filter(filter.s, v, more, budget));
  }
  return make_list(std::move(out), budget);
}

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

Value unique(const Value& input, const Arguments& args, Budget& budget) {
  args.only("unique", {});
  std::vector<Value> out, seen;  // `seen`: what is compared
  for (const Value& v : iterate(input, budget)) {
    const Value key = v.as_text() ? Value::text(change_case(*v.as_text(), Case::Lower, budget)) : v;
    if (std::any_of(seen.begin(), seen.end(),
                    [&](const Value& other) { return equal(key, other, budget); }))
      continue;
    seen.push_back(key);
    out.push_back(v);
  }
  return make_list(std::move(out), budget);
}

Value end_of(const Value& input, bool first, Budget& budget) {
  const auto items = iterate(input, budget);
  if (items.empty()) return Value::undefined("the end of an empty sequence");
  return first ? items.front() : items.back();
}

Value extreme(const Value& input, bool smallest, Budget& budget) {
  const auto items = iterate(input, budget);
  if (items.empty()) return Value::undefined("the extreme of an empty sequence");
  const Value* best = &items[0];
  for (const Value& v : items)
    if (smallest ? less(v, *best, budget) : less(*best, v, budget)) best = &v;
  return *best;
}

template <Case how>
Value cased(const Value& input, const Arguments& args, Budget& budget) {
  args.only("upper, lower and capitalize", {});
  return Value::text(change_case(to_text(input, budget), how, budget));
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
      {"length", [](const Value& v, const Arguments&, Budget& b) { return Value(length(v, b)); }},
      {"count", [](const Value& v, const Arguments&, Budget& b) { return Value(length(v, b)); }},
      {"tojson", tojson},
      {"join",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("join", {"d", "attribute"});
         const Text between = a.get(0, "d") ? to_text(*a.get(0, "d"), b) : Text{};
         auto items = iterate(v, b);
         if (const Value* name = a.get(1, "attribute"))
           for (Value& each : items) each = path(each, expect_text(*name, "attribute"), b);
         return Value::text(join(items, between, b));
       }},
      {"upper", cased<Case::Upper>},
      {"lower", cased<Case::Lower>},
      {"capitalize", cased<Case::Capital>},
      {"title", title},
      {"first", [](const Value& v, const Arguments&, Budget& b) { return end_of(v, true, b); }},
      {"last", [](const Value& v, const Arguments&, Budget& b) { return end_of(v, false, b); }},
      {"min", [](const Value& v, const Arguments&, Budget& b) { return extreme(v, true, b); }},
      {"max", [](const Value& v, const Arguments&, Budget& b) { return extreme(v, false, b); }},
      {"default", default_value},
      {"d", default_value},
      {"list",
       [](const Value& v, const Arguments&, Budget& b) { return make_list(iterate(v, b), b); }},
      {"map", map},
      {"select",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, false, true, b); }},
      {"reject",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, false, false, b); }},
      {"selectattr",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, true, true, b); }},
      {"rejectattr",
       [](const Value& v, const Arguments& a, Budget& b) { return select(v, a, true, false, b); }},
      {"string",
       [](const Value& v, const Arguments&, Budget& b) { return Value::text(to_text(v, b)); }},
      {"safe", [](const Value& v, const Arguments&, Budget&) { return v; }},
      {"int", to_integer},
      {"float", to_real},
      {"abs",
       [](const Value& v, const Arguments&, Budget&) {
         if (!v.is_number()) fail("abs of a " + type_name(v));
         if (!v.is_integer()) return Value(std::abs(v.real()));
         if (v.integer() == INT64_MIN) fail("a number is too large");
         return Value(std::abs(v.integer()));
       }},
      {"items",
       [](const Value& v, const Arguments&, Budget& b) {
         if (v.is<Undefined>()) return make_list({}, b);
         if (v.as_dict() == nullptr) fail("items of a " + type_name(v));
         return call_method(v, "items", {}, b);
       }},
      {"replace",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("replace", {"old", "new", "count"});
         if (!a.get(0, "old") || !a.get(1, "new")) fail("replace lacks an argument");
         return Value::text(replace(to_text(v, b), to_text(*a.get(0, "old"), b),
                                    to_text(*a.get(1, "new"), b),
                                    integer_or(a.get(2, "count"), -1, "count"), b));
       }},
      {"dictsort",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("dictsort", {"case_sensitive"});
         if (v.as_dict() == nullptr) fail("dictsort of a " + type_name(v));
         Arguments by;
         if (const Value* exact = a.get(0, "case_sensitive"))
           by.named = {{"case_sensitive", *exact}};
         const Value keys = sorted(iterate(v, b), by, false, b);
         std::vector<Value> out;
         for (const Value& key : keys.as_list()->items)
           out.push_back(make_list({key, item(v, key, b)}, b, true));
         return make_list(std::move(out), b);
       }},
      {"sort",
       [](const Value& v, const Arguments& a, Budget& b) {
         a.only("sort", {"reverse", "case_sensitive", "attribute"});
         return sorted(iterate(v, b), a, true, b);
       }},
      {"reverse",
       [](const Value& v, const Arguments&, Budget& b) {
         auto items = iterate(v, b);
         std::reverse(items.begin(), items.end());
         return v.as_text() ? Value::text(join(items, {}, b)) : make_list(std::move(items), b);
       }},
      {"unique", unique},
      {"indent", indent},
  };
  return all;
}

}  // namespace

bool filter_exists(std::string_view name) { return filters().contains(name); }

Value apply_filter(std::string_view name, const Value& input, const Arguments& args,
                   Budget& budget) {
  budget.work();
  return filters().at(name)(input, args, budget);
}

}  // namespace lk::jinja
