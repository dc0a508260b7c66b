#include "text/jinja/value.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk::jinja {

namespace {

// The text's first `limit` bytes at most, as whole characters; "..." says that some are missing.
std::string cut(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return std::string(text);
  while ((static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return std::string(text.substr(0, limit)) + "...";
}

// What it costs at most to look for a key among `n` others.
std::uint64_t search_work(std::size_t n, std::string_view key) { return n * (1 + key.size() / 32); }

}  // namespace

void fail(const std::string& what) { throw InputError(cut(what, 400)); }

std::string quoted(std::string_view name) { return "\"" + cut(name, 60) + "\""; }

void Budget::work(std::uint64_t n) {
  if (n > work_) throw OverBudget("the template takes too many steps");
  work_ -= n;
}

void Budget::bytes(std::uint64_t n) {
  if (n > bytes_) throw OverBudget("the template makes too much text");
  bytes_ -= n;
}

void Text::append(const Text& other, std::size_t begin, std::size_t end) {
  const std::size_t at = s.size();
  s.append(other.s, begin, end - begin);
  auto mark = std::partition_point(other.marks.begin(), other.marks.end(),
                                   [&](const auto& m) { return m.second <= begin; });
  for (; mark != other.marks.end() && mark->first < end; ++mark) {
    const std::size_t from = std::max(mark->first, begin), to = std::min(mark->second, end);
    if (from >= to) continue;
    if (!marks.empty() && marks.back().second == at + from - begin)
      marks.back().second = at + to - begin;
    else
      marks.emplace_back(at + from - begin, at + to - begin);
  }
}

void Text::append_marked(std::string_view content) {
  if (content.empty()) return;
  if (!marks.empty() && marks.back().second == s.size())
    marks.back().second += content.size();
  else
    marks.emplace_back(s.size(), s.size() + content.size());
  s += content;
}

Text Text::part(std::size_t begin, std::size_t end) const {
  Text out;
  out.append(*this, begin, end);
  return out;
}

bool Text::marked(std::size_t at) const {
  auto it = std::partition_point(marks.begin(), marks.end(),
                                 [&](const auto& m) { return m.second <= at; });
  return it != marks.end() && it->first <= at;
}

const Value* Dict::find(std::string_view key, Budget& budget) const {
  budget.work(search_work(items.size(), key));
  for (const auto& [k, value] : items)
    if (k == key) return &value;
  return nullptr;
}

namespace {

int depth_of(const Value& v) {
  if (const List* list = v.as_list()) return list->depth;
  if (const Dict* dict = v.as_dict()) return dict->depth;
  if (auto loop = std::get_if<std::shared_ptr<Loop>>(&v.v)) return (*loop)->items->depth + 1;
  return 0;
}

int deeper(int depth, const Value& child) {
  depth = std::max(depth, depth_of(child) + 1);
  if (depth > kMaxValueDepth) fail("lists and dicts are nested too deeply");
  return depth;
}

}  // namespace

Value make_list(std::vector<Value> items, Budget& budget, List::Kind kind) {
  budget.bytes(sizeof(List) + items.size() * sizeof(Value));
  List list;
  for (const Value& item : items) list.depth = deeper(list.depth, item);
  list.items = std::move(items);
  list.kind = kind;
  if (kind == List::Kind::Generator) list.taken = std::make_shared<std::size_t>(0);
  return {std::make_shared<const List>(std::move(list))};
}

Value make_dict(std::vector<std::pair<std::string, Value>> items, Budget& budget) {
  Dict dict;
  for (auto& [key, value] : items) {
    budget.bytes(key.size() + sizeof(Value) + sizeof(std::string));
    budget.work(1 + search_work(dict.items.size(), key));
    dict.depth = deeper(dict.depth, value);
    auto it = std::find_if(dict.items.begin(), dict.items.end(),
                           [&k = key](const auto& item) { return item.first == k; });
    if (it != dict.items.end())
      it->second = std::move(value);
    else
      dict.items.emplace_back(std::move(key), std::move(value));
  }
  return {std::make_shared<const Dict>(std::move(dict))};
}

std::string type_name(const Value& v) {
  constexpr const char* names[] = {"Undefined", "NoneType",    "bool",    "int",
                                   "float",     "str",         "list",    "dict",
                                   "Namespace", "LoopContext", "function"};
  constexpr const char* lists[] = {"list", "tuple", "range", "dict view", "generator"};
  if (const List* list = v.as_list()) return lists[static_cast<std::size_t>(list->kind)];
  return names[v.v.index()];
}

bool truth(const Value& v) {
  if (v.is<Undefined>() || v.is<None>()) return false;
  if (v.is_integer()) return v.integer() != 0;
  if (v.is<double>()) return v.real() != 0;
  if (const Text* text = v.as_text()) return !text->s.empty();
  if (const List* list = v.as_list())
    return list->kind == List::Kind::Generator || !list->items.empty();
  if (const Dict* dict = v.as_dict()) return !dict->items.empty();
  return true;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.work();
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? a.integer() == b.integer() : a.real() == b.real();
  if (a.v.index() != b.v.index()) return false;
  if (a.is<Undefined>() || a.is<None>()) return true;
  if (const Text* text = a.as_text()) {
    budget.work(text->s.size() / 16);
    return text->s == b.as_text()->s;
  }
  if (const List* list = a.as_list()) {
    const List& other = *b.as_list();
    if (list->kind != other.kind) return false;
    if (list->kind >= List::Kind::View) fail("a " + type_name(a) + " can't be compared");
    if (list->items.size() != other.items.size()) return false;
    for (std::size_t i = 0; i < list->items.size(); ++i)
      if (!equal(list->items[i], other.items[i], budget)) return false;
    return true;
  }
  if (const Dict* dict = a.as_dict()) {
    if (dict->items.size() != b.as_dict()->items.size()) return false;
    for (const auto& [key, value] : dict->items) {
      const Value* other = b.as_dict()->find(key, budget);
      if (other == nullptr || !equal(value, *other, budget)) return false;
    }
    return true;
  }
  if (a.is<Namespace*>()) return std::get<Namespace*>(a.v) == std::get<Namespace*>(b.v);
  return false;
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.work();
  if (a.is_number() && b.is_number())
    return a.is_integer() && b.is_integer() ? a.integer() < b.integer() : a.real() < b.real();
  if (a.as_text() != nullptr && b.as_text() != nullptr) {
    budget.work(std::min(a.as_text()->s.size(), b.as_text()->s.size()) / 16);
    return a.as_text()->s < b.as_text()->s;  // bytes of UTF-8 order as code points do
  }
  if (a.as_list() && b.as_list() && a.as_list()->is_written() &&
      a.as_list()->kind == b.as_list()->kind) {
    const auto &x = a.as_list()->items, &y = b.as_list()->items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i], budget)) return less(x[i], y[i], budget);
    return x.size() < y.size();
  }
  fail("'" + type_name(a) + "' and '" + type_name(b) + "' can't be ordered");
}

}  // namespace lk::jinja
