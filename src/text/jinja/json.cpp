#include "text/jinja/json.h"

namespace lk::jinja {

namespace {

template <class J>
Value value_of(const J& json, Budget& budget, bool marked, const JsonPlace& place) {
  switch (json.type()) {
    case J::value_t::boolean:
      return json.template get<bool>();
    case J::value_t::number_integer:
      return json.template get<std::int64_t>();
    case J::value_t::number_unsigned:
      if (json.template get<std::uint64_t>() > INT64_MAX)
        fail(concat(place.text(), ": the integer ", json.template get<std::uint64_t>(),
                    " is too large: templates take them up to ", INT64_MAX));
      return json.template get<std::int64_t>();
    case J::value_t::number_float:
      return json.template get<double>();
    case J::value_t::string: {
      const auto& s = json.template get_ref<const std::string&>();
      budget.bytes(s.size());
      Text text;
      if (marked)
        text.append_marked(s);
      else
        text.append(s);
      return Value::text(std::move(text));
    }
    case J::value_t::array: {
      std::vector<Value> items;
      for (const J& item : json)
        items.push_back(value_of(item, budget, marked, {&place, {}, std::ssize(items)}));
      return make_list(std::move(items), budget);
    }
    case J::value_t::object: {
      std::vector<std::pair<std::string, Value>> items;
      for (const auto& [key, value] : json.items())
        items.emplace_back(key, value_of(value, budget, marked, {&place, key}));
      return make_dict(std::move(items), budget);
    }
    default:
      return None{};
  }
}

}  // namespace

std::string JsonPlace::text() const {
  const std::string before = outer == nullptr ? "" : outer->text();
  if (index >= 0) return concat(before, "[", index, "]");
  return concat(before, before.empty() || key.empty() ? "" : ".", key);
}

Value from_json(const Json& json, Budget& budget, bool marked, const JsonPlace& place) {
  return value_of(json, budget, marked, place);
}

Value from_json(const OrderedJson& json, Budget& budget, bool marked, const JsonPlace& place) {
  return value_of(json, budget, marked, place);
}

}  // namespace lk::jinja
