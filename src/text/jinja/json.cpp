#include "text/jinja/json.h"

namespace lk::jinja {

Value from_json(const Json& json, Budget& budget, bool marked) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<std::int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > INT64_MAX) fail("an integer is too large");
      return json.get<std::int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string: {
      const auto& s = json.get_ref<const std::string&>();
      budget.bytes(s.size());
      Text text;
      if (marked)
        text.append_marked(s);
      else
        text.append(s);
      return Value::text(std::move(text));
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(from_json(item, budget, marked));
      return make_list(std::move(items), budget);
    }
    case Json::value_t::object: {
      std::vector<std::pair<std::string, Value>> items;
      for (const auto& [key, value] : json.items())
        items.emplace_back(key, from_json(value, budget, marked));
      return make_dict(std::move(items), budget);
    }
    default:
      return None{};
  }
}

}  // namespace lk::jinja
