// Python's methods of strings and dicts.
#include <algorithm>

#include "tensor/error.h"
#include "text/jinja/builtins.h"
#include "text/jinja/search.h"
#include "text/unicode.h"
#include "text/white_space.h"

namespace lk::jinja {

Text strip(const Text& text, const std::string* chars, bool left, bool right, Budget& budget) {
  const std::string& s = text.s;
  budget.work(1 + s.size() / 8);
  auto goes = [&](std::size_t begin, std::size_t end) {
    if (chars == nullptr) return is_space(utf8_decode(s.data() + begin));
    budget.work(1 + chars->size() / 8);
    return chars->find(s.substr(begin, end - begin)) != std::string::npos;
  };
  std::size_t begin = 0, end = s.size();
  while (left && begin < end) {
    const std::size_t next = begin + utf8_length(static_cast<unsigned char>(s[begin]));
    if (!goes(begin, next)) break;
    begin = next;
  }
  while (right && begin < end) {
    const std::size_t last = previous_character(s, end);
    if (!goes(last, end)) break;
    end = last;
  }
  budget.bytes(end - begin);
  return text.part(begin, end);
}

Text change_case(const Text& text, Case how, Budget& budget) {
  budget.work(text.s.size());
  budget.bytes(text.s.size());
  Text out = text;  // ASCII letters keep their length, so the marks stay
  bool in_word = false;
  for (std::size_t i = 0; i < out.s.size();
       i += utf8_length(static_cast<unsigned char>(out.s[i]))) {
    char& c = out.s[i];
    const bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
    if (static_cast<unsigned char>(c) >= 0x80 &&
        (char_classes()[utf8_decode(out.s.data() + i)] & kLetter) != 0)
      fail("upper and lower case of letters beyond ASCII are not supported");
    const bool want_upper =
        how == Case::Upper || (how == Case::Title && !in_word) || (how == Case::Capital && i == 0);
    if (lower && want_upper) c = static_cast<char>(c - 32);
    if (upper && !want_upper) c = static_cast<char>(c + 32);
    in_word = lower || upper;
  }
  return out;
}

Text replace(const Text& text, const Text& from, const Text& to, std::int64_t count,
             Budget& budget) {
  budget.work(1 + text.s.size() / 8);
  budget.bytes(text.s.size());
  Text out;
  std::size_t done = 0;
  auto put = [&](std::size_t until, std::size_t skip) {
    budget.work(2 + to.s.size() / 32);
    budget.bytes(to.s.size());
    out.append(text, done, until);
    out.append(to);
    done = until + skip;
  };
  if (from.s.empty()) {  // Python puts the new text before each character and at the end
    for (std::size_t i = 0; count != 0; --count) {
      put(i, 0);
      if (i == text.s.size()) break;
      i += utf8_length(static_cast<unsigned char>(text.s[i]));
    }
  } else {
    for (const std::size_t at : occurrences(text.s, from.s, count, false, budget))
      put(at, from.s.size());
  }
  out.append(text, done, text.s.size());
  return out;
}

Text join(const std::vector<Value>& items, const Text& between, Budget& budget) {
  Text out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    budget.work();
    budget.bytes(between.s.size());
    if (i > 0) out.append(between);
    out.append(to_text(items[i], budget));
  }
  return out;
}

namespace {

constexpr const char* kTextMethods[] = {
    "strip",   "lstrip", "rstrip", "startswith", "endswith",   "split",        "rsplit",
    "replace", "upper",  "lower",  "title",      "capitalize", "splitlines",   "join",
    "find",    "rfind",  "count",  "isdigit",    "isspace",    "removeprefix", "removesuffix"};
constexpr const char* kDictMethods[] = {"items", "keys", "values", "get"};

// Whether a text begins or ends with a string, or with one of a tuple of strings.
bool affix(const Text& text, const Value& what, bool front, Budget& budget) {
  auto one = [&](const Value& v) {
    const std::string& s = expect_text(v, "the argument of startswith or endswith").s;
    budget.work(1 + s.size() / 32);
    return front ? text.s.starts_with(s) : text.s.ends_with(s);
  };
  const List* list = what.as_list();
  if (list == nullptr) return one(what);
  return std::any_of(list->items.begin(), list->items.end(), one);
}

// str.split and str.rsplit.
Value split(const Text& text, const Value* separator, std::int64_t most, bool from_right,
            Budget& budget) {
  const std::string& s = text.s;
  budget.work(1 + s.size() / 4);
  budget.bytes(s.size());
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  auto more = [&] { return most < 0 || std::ssize(parts) < most; };
  if (separator == nullptr || separator->is<None>()) {
    if (from_right && most >= 0) fail("rsplit of white space with a limit is not supported");
    for (std::size_t i = end_of_space(s, 0); i < s.size(); i = end_of_space(s, i)) {
      std::size_t end = i;
      if (!more()) {
        parts.emplace_back(i, strip_right(s).size());
        break;
      }
      while (end < s.size() && !is_space(utf8_decode(s.data() + end)))
        end += utf8_length(static_cast<unsigned char>(s[end]));
      parts.emplace_back(i, end);
      i = end;
    }
  } else {
    const std::string& by = expect_text(*separator, "split's separator").s;
    if (by.empty()) fail("split's separator is empty");
    std::size_t begin = 0;
    for (const std::size_t at : occurrences(s, by, most, from_right, budget)) {
      parts.emplace_back(begin, at);
      begin = at + by.size();
    }
    parts.emplace_back(begin, s.size());
  }
  std::vector<Value> out;
  budget.work(2 * parts.size());
  budget.bytes(parts.size() * sizeof(Text));
  for (const auto& [begin, end] : parts) out.push_back(Value::text(text.part(begin, end)));
  return make_list(std::move(out), budget);
}

Value split_lines(const Text& text, bool keep, Budget& budget) {
  const std::string& s = text.s;
  budget.work(s.size() / 2);
  budget.bytes(s.size());
  std::vector<Value> lines;
  auto ends_line = [](char32_t c) {
    return (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
  };
  for (std::size_t begin = 0, i = 0; i < s.size();) {
    const std::size_t next = i + utf8_length(static_cast<unsigned char>(s[i]));
    const bool ends = ends_line(utf8_decode(s.data() + i));
    const std::size_t after = s.compare(i, 2, "\r\n") == 0 ? i + 2 : next;
    if (ends || next == s.size()) {
      budget.work(2);
      budget.bytes(sizeof(Text));
      lines.push_back(Value::text(text.part(begin, keep || !ends ? after : i)));
      begin = after;
    }
    i = ends ? after : next;
  }
  return make_list(std::move(lines), budget);
}

Value text_method(const Text& text, const std::string& name, const Arguments& args,
                  Budget& budget) {
  auto argument = [&](std::size_t i, const char* key) -> const Text& {
    const Value* v = args.get(i, key);
    if (v == nullptr) fail(name + "() lacks an argument");
    return expect_text(*v, (name + "()'s argument").c_str());
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    args.only(name, {"chars"});
    const Value* v = args.get(0, "chars");
    const std::string* chars =
        v == nullptr || v->is<None>() ? nullptr : &expect_text(*v, "strip's characters").s;
    return Value::text(strip(text, chars, name != "rstrip", name != "lstrip", budget));
  }
  if (name == "startswith" || name == "endswith") {
    args.only(name, {"what"});
    const Value* what = args.get(0, "what");
    if (what == nullptr) fail(name + "() lacks an argument");
    return affix(text, *what, name == "startswith", budget);
  }
  if (name == "split" || name == "rsplit") {
    args.only(name, {"sep", "maxsplit"});
    return split(text, args.get(0, "sep"), integer_or(args.get(1, "maxsplit"), -1, "maxsplit"),
                 name == "rsplit", budget);
  }
  if (name == "replace") {
    args.only(name, {"old", "new", "count"});
    return Value::text(replace(text, argument(0, "old"), argument(1, "new"),
                               integer_or(args.get(2, "count"), -1, "count"), budget));
  }
  if (name == "splitlines") {
    args.only(name, {"keepends"});
    return split_lines(text, args.get(0, "keepends") && truth(*args.get(0, "keepends")), budget);
  }
  if (name == "join") {
    args.only(name, {"items"});
    if (args.get(0, "items") == nullptr) fail("join() lacks an argument");
    const auto items = iterate(*args.get(0, "items"), budget);
    for (const Value& v : items) expect_text(v, "an item of join()");
    return Value::text(join(items, text, budget));
  }
  if (name == "find" || name == "rfind" || name == "count") {
    args.only(name, {"what"});
    const std::string& what = argument(0, "what").s;
    if (name == "count") {
      if (what.empty()) return count_characters(text.s, budget) + 1;
      return std::ssize(occurrences(text.s, what, -1, false, budget));
    }
    std::size_t at = name == "find" ? 0 : text.s.size();
    if (!what.empty()) {
      const auto found = occurrences(text.s, what, 1, name == "rfind", budget);
      if (found.empty()) return std::int64_t{-1};
      at = found[0];
    }
    return count_characters(std::string_view(text.s).substr(0, at), budget);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    args.only(name, {"what"});
    const std::string& what = argument(0, "what").s;
    const bool front = name == "removeprefix";
    budget.work(1 + what.size() / 32);
    budget.bytes(text.s.size());
    if (!(front ? text.s.starts_with(what) : text.s.ends_with(what))) return Value::text(text);
    return Value::text(front ? text.part(what.size(), text.s.size())
                             : text.part(0, text.s.size() - what.size()));
  }
  args.only(name, {});
  if (name == "isdigit" || name == "isspace") {
    budget.work(text.s.size() / 4);
    if (name == "isspace") return !text.s.empty() && end_of_space(text.s, 0) == text.s.size();
    if (std::any_of(text.s.begin(), text.s.end(), [](char c) { return (c & 0x80) != 0; }))
      fail("isdigit() beyond ASCII is not supported");
    return !text.s.empty() && text.s.find_first_not_of("0123456789") == std::string::npos;
  }
  return Value::text(change_case(text,
                                 name == "upper"   ? Case::Upper
                                 : name == "lower" ? Case::Lower
                                 : name == "title" ? Case::Title
                                                   : Case::Capital,
                                 budget));
}

}  // namespace

bool has_method(const Value& self, std::string_view name) {
  auto in = [&](const auto& names) {
    return std::any_of(std::begin(names), std::end(names), [&](auto* n) { return name == n; });
  };
  if (self.as_text() != nullptr) return in(kTextMethods);
  if (self.as_dict() != nullptr) return in(kDictMethods);
  if (self.is<std::shared_ptr<Loop>>()) return name == "cycle";
  return false;
}

Value call_method(const Value& self, const std::string& name, const Arguments& args,
                  Budget& budget) {
  if (const Text* text = self.as_text()) return text_method(*text, name, args, budget);
  if (self.is<std::shared_ptr<Loop>>()) {
    const std::size_t n = args.positional.size();
    if (n == 0 || !args.named.empty()) fail("loop.cycle takes values by turns");
    return args.positional[std::get<std::shared_ptr<Loop>>(self.v)->index0 % n];
  }
  const Dict& dict = *self.as_dict();
  if (name == "get") {
    args.only("get", {"key", "default"});
    if (args.positional.empty()) fail("get() lacks an argument");
    const Text* key = args.positional[0].as_text();
    const Value* found = key == nullptr ? nullptr : dict.find(key->s, budget);
    if (found != nullptr) return *found;
    return args.get(1, "default") != nullptr ? *args.get(1, "default") : Value(None{});
  }
  args.only(name, {});
  std::vector<Value> out;
  for (const auto& [key, value] : dict.items) {
    budget.work(name == "items" ? 6 : 2);
    budget.bytes(sizeof(Text) + key.size());
    if (name == "keys")
      out.push_back(Value::text(key));
    else if (name == "values")
      out.push_back(value);
    else
      out.push_back(make_list({Value::text(key), value}, budget, List::Kind::Tuple));
  }
  return make_list(std::move(out), budget, List::Kind::View);
}

}  // namespace lk::jinja
