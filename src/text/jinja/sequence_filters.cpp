#include "text/jinja/sequence_filters.h"

#include <algorithm>
#include <charconv>

#include "tensor/error.h"
#include "text/jinja/tree.h"

namespace lk::jinja {

namespace {

bool flag(const Arguments& args, std::size_t i, const char* name) {
  return args.get(i, name) != nullptr && truth(*args.get(i, name));
}

Value lower(const Value& v, Budget& budget) {
  return v.as_text() ? Value::text(change_case(*v.as_text(), Case::Lower, budget)) : v;
}

// What items are compared by: an attribute or themselves, in lower case unless told otherwise.
struct Order {
  const Value *attribute, *otherwise = nullptr;  // both may be null
  bool exact;
  // From the arguments `case_sensitive` and `attribute`, which stand at these places.
  Order(const Arguments& args, std::size_t sensitive_at, std::size_t attribute_at)
      : attribute(args.get(attribute_at, "attribute")),
        exact(flag(args, sensitive_at, "case_sensitive")) {}
  Value raw_key(const Value& v, Budget& budget) const {
    return attribute != nullptr ? path(v, *attribute, budget, otherwise) : v;
  }
  Value key(const Value& v, Budget& budget) const {
    return exact ? raw_key(v, budget) : lower(raw_key(v, budget), budget);
  }
};

using Keyed = std::vector<std::pair<Value, Value>>;  // what an item is compared by, and the item

template <class Key>
Keyed sorted(std::vector<Value> items, Key&& key_of, bool reverse, Budget& budget) {
  Keyed keyed;
  for (Value& v : items) {
    Value key = key_of(v);
    keyed.emplace_back(std::move(key), std::move(v));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(b.first, a.first, budget) : less(a.first, b.first, budget);
  });
  return keyed;
}

// The attributes that a text names, with commas between; any other value is one attribute.
std::vector<Value> attributes(const Value& names, Budget& budget) {
  if (names.as_text() == nullptr) return {names};
  const Arguments comma{{Value::text(",")}, {}};
  return call_method(names, "split", comma, budget).as_list()->items;
}

// The arguments from the i-th on.
Arguments rest(const Arguments& args, std::size_t i) {
  Arguments out;
  for (; i < args.positional.size(); ++i) out.positional.push_back(args.positional[i]);
  return out;
}

}  // namespace

Value path(const Value& value, const Value& attribute, Budget& budget, const Value* otherwise) {
  if (attribute.is<None>()) return value;
  auto part = [&](const Value& of, const Value& name) {
    Value found = item(of, name, budget);
    const bool replaced = found.is<Undefined>() && otherwise != nullptr && !otherwise->is<None>();
    return replaced ? *otherwise : found;
  };
  if (attribute.is_integer()) return part(value, attribute);
  const std::string& names = expect_text(attribute, "attribute").s;
  budget.work(1 + names.size() / 8);
  budget.bytes(names.size());
  Value at = value;
  for (std::size_t begin = 0; begin <= names.size();) {
    const std::size_t dot = std::min(names.find('.', begin), names.size());
    const char *first = names.data() + begin, *last = names.data() + dot;
    std::int64_t index = 0;
    const auto read = std::from_chars(first, last, index);
    const bool digits = first != last && *first != '-' && read.ptr == last;
    at = part(at, digits && read.ec == std::errc() ? Value(index)
                                                   : Value::text(std::string_view(first, last)));
    begin = dot + 1;
  }
  return at;
}

Value sort(const Value& input, const Arguments& args, Budget& budget) {
  args.only("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Order> orders;
  const Order whole(args, 1, 2);
  const std::vector<Value> names =
      attributes(whole.attribute != nullptr ? *whole.attribute : Value(None{}), budget);
  for (const Value& name : names) orders.push_back(whole), orders.back().attribute = &name;
  auto keys = [&](const Value& v) {
    std::vector<Value> all;
    for (const Order& order : orders) all.push_back(order.key(v, budget));
    return make_list(std::move(all), budget);
  };
  std::vector<Value> out;
  for (auto& [key, v] : sorted(iterate(input, budget), keys, flag(args, 0, "reverse"), budget))
    out.push_back(std::move(v));
  return make_list(std::move(out), budget);
}

Value dictsort(const Value& input, const Arguments& args, Budget& budget) {
  args.only("dictsort", {"case_sensitive", "by", "reverse"});
  if (input.as_dict() == nullptr) fail("dictsort of a " + type_name(input));
  const Value* by = args.get(1, "by");
  const std::string name = by != nullptr ? expect_text(*by, "dictsort's by").s : "key";
  if (name != "key" && name != "value") fail("dictsort's by must be key or value");
  auto key_of = [&](const Value& pair) {
    const Value& v = pair.as_list()->items[name == "key" ? 0 : 1];
    return flag(args, 0, "case_sensitive") ? v : lower(v, budget);
  };
  std::vector<Value> out;
  for (auto& [key, v] : sorted(iterate(call_method(input, "items", {}, budget), budget), key_of,
                               flag(args, 2, "reverse"), budget))
    out.push_back(std::move(v));
  return make_list(std::move(out), budget);
}

Value select(const Value& input, const Arguments& args, bool by_attribute, bool want,
             Budget& budget) {
  const std::size_t first = by_attribute ? 1 : 0;
  if (args.positional.size() < first) fail("selectattr and rejectattr lack an attribute");
  std::vector<Value> out;
  for (const Value& v : iterate(input, budget)) {
    const Value tested = by_attribute ? path(v, args.positional[0], budget) : v;
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
  return make_list(std::move(out), budget, List::Kind::Generator);
}

Value map(const Value& input, const Arguments& args, Budget& budget) {
  std::vector<Value> out;
  if (args.positional.empty()) {
    args.only("map", {"attribute", "default"});
    const Value* name = args.get(0, "attribute");
    if (name == nullptr) fail("map lacks an attribute or a filter");
    for (const Value& v : iterate(input, budget))
      out.push_back(path(v, *name, budget, args.get(1, "default")));
  } else {
    const Text& filter = expect_text(args.positional[0], "a filter's name");
    if (!filter_exists(filter.s) || filter.s == "map")
      fail("map by the filter \"" + filter.s + "\" is not in this subset of Jinja");
    Arguments more = rest(args, 1);
    more.named = args.named;
    for (const Value& v : iterate(input, budget))
      out.push_back(apply_filter(filter.s, v, more, budget));
  }
  return make_list(std::move(out), budget, List::Kind::Generator);
}

Value unique(const Value& input, const Arguments& args, Budget& budget) {
  args.only("unique", {"case_sensitive", "attribute"});
  const Order order(args, 0, 1);
  std::vector<Value> out, seen;  // `seen`: what is compared
  for (const Value& v : iterate(input, budget)) {
    const Value key = order.key(v, budget);
    if (std::any_of(seen.begin(), seen.end(),
                    [&](const Value& other) { return equal(key, other, budget); }))
      continue;
    seen.push_back(key);
    out.push_back(v);
  }
  return make_list(std::move(out), budget, List::Kind::Generator);
}

Value extreme(const Value& input, const Arguments& args, bool smallest, Budget& budget) {
  args.only("min and max", {"case_sensitive", "attribute"});
  const Order order{args, 0, 1};
  const auto items = iterate(input, budget);
  if (items.empty()) return Value::undefined("the extreme of an empty sequence");
  std::size_t best = 0;
  Value best_key = order.key(items[0], budget);
  for (std::size_t i = 1; i < items.size(); ++i) {
    Value key = order.key(items[i], budget);
    if (!(smallest ? less(key, best_key, budget) : less(best_key, key, budget))) continue;
    best = i, best_key = std::move(key);
  }
  return items[best];
}

Value batch(const Value& input, const Arguments& args, Budget& budget) {
  args.only("batch", {"linecount", "fill_with"});
  if (args.get(0, "linecount") == nullptr) fail("batch lacks a count");
  const std::int64_t count = integer_or(args.get(0, "linecount"), 0, "batch's count");
  std::vector<Value> out, line;
  for (Value& v : iterate(input, budget)) {
    if (std::ssize(line) == count) {
      out.push_back(make_list(std::move(line), budget));
      line.clear();
    }
    line.push_back(std::move(v));
  }
  const Value* filling = args.get(1, "fill_with");
  const std::int64_t room = line.empty() || !filling || filling->is<None>()
                                ? 0
                                : std::max(count - std::ssize(line), std::int64_t{0});
  budget.work(static_cast<std::uint64_t>(room));
  if (room > 0) {
    budget.bytes(static_cast<std::uint64_t>(room) * sizeof(Value));
    line.insert(line.end(), static_cast<std::size_t>(room), *filling);
  }
  if (!line.empty()) out.push_back(make_list(std::move(line), budget));
  return make_list(std::move(out), budget, List::Kind::Generator);
}

Value groupby(const Value& input, const Arguments& args, Budget& budget) {
  args.only("groupby", {"attribute", "default", "case_sensitive"});
  Order order(args, 2, 0);
  if (order.attribute == nullptr) fail("groupby lacks an attribute");
  order.otherwise = args.get(1, "default");
  Keyed keyed = sorted(
      iterate(input, budget), [&](const Value& v) { return order.key(v, budget); }, false, budget);
  std::vector<Value> out;
  for (std::size_t i = 0; i < keyed.size();) {
    Value name = order.raw_key(keyed[i].second, budget);
    std::vector<Value> group;
    const std::size_t begin = i;
    for (; i < keyed.size() && (i == begin || equal(keyed[begin].first, keyed[i].first, budget));
         ++i)
      group.push_back(std::move(keyed[i].second));
    const Value members = make_list(std::move(group), budget);
    List pair = *make_list({std::move(name), members}, budget, List::Kind::Tuple).as_list();
    pair.group = true;
    out.emplace_back(std::make_shared<const List>(std::move(pair)));
  }
  return make_list(std::move(out), budget);
}

}  // namespace lk::jinja
