#include "io/json.h"

#include <cmath>
#include <type_traits>
#include <unordered_set>

#include "io/input_file.h"
#include "io/json_scanner.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

// Builds nlohmann values. Recursion is safe: the scanner stops at 64 levels. The values' memory is
// counted, since "[[],[],..." needs twenty times its own size. The largest tokenizer.json (30
// MB, half a million merges) needs four times.
template <class J>
class Builder {
 public:
  Builder(JsonScanner& in, std::size_t text_bytes)
      : in_(in), left_((std::size_t{64} << 20) + 8 * text_bytes) {}

  J value() {
    switch (in_.peek()) {
      case '{':
        return object();
      case '[':
        return array();
      case '"':
        return string();
      case 't':
      case 'f':
        return in_.boolean();
      case 'n':
        in_.null();
        return nullptr;
      default:
        return number();
    }
  }

 private:
  J object() {
    take(sizeof(typename J::object_t) + kHeapBlock);
    J result = J::object();
    auto& members = result.template get_ref<typename J::object_t&>();
    std::unordered_set<std::string> seen;  // an ordered object's keys: looking one up there is slow
    in_.object([&](std::string key) {
      take(kTreeNode + kDestroyed + key.size());
      if constexpr (std::is_same_v<J, OrderedJson>) {
        if (!seen.insert(key).second) fail_twice(key);
        J member = value();
        members.emplace_back(std::move(key), std::move(member));
      } else {
        auto [at, is_new] = members.try_emplace(std::move(key));
        if (!is_new) fail_twice(at->first);
        at->second = value();
      }
    });
    return result;
  }
  [[noreturn]] void fail_twice(const std::string& key) {
    in_.fail("the key " + printable(key) + " occurs twice");
  }
  J array() {
    take(sizeof(typename J::array_t) + 2 * kHeapBlock);
    J result = J::array();
    auto& items = result.template get_ref<typename J::array_t&>();
    in_.array([&] {
      take(kDestroyed);
      if (items.size() == items.capacity()) grow(items);
      items.push_back(value());
    });
    return result;
  }
  J string() {
    std::string text = in_.string();
    take(sizeof(std::string) + 2 * kHeapBlock + text.size());
    return J(std::move(text));
  }
  J number() {
    JsonScanner::Number n = in_.number();
    switch (n.kind) {
      case JsonScanner::Number::Unsigned:
        return n.u;
      case JsonScanner::Number::Signed:
        return n.i;
      default:
        return n.d;
    }
  }
  // Doubles the room: for a moment old and new both take memory.
  void grow(typename J::array_t& items) {
    const std::size_t old = items.capacity(), now = old == 0 ? 1 : 2 * old;
    take(now * sizeof(J));
    items.reserve(now);
    left_ += old * sizeof(J);
  }
  void take(std::size_t bytes) {
    if (bytes > left_) in_.fail("too many values for a file of this size");
    left_ -= bytes;
  }

  static constexpr std::size_t kHeapBlock = 8;  // malloc's own header
  static constexpr std::size_t kTreeNode = 96;
  static constexpr std::size_t kDestroyed = sizeof(J);  // nlohmann's destructor lists the items

  JsonScanner& in_;
  std::size_t left_;
};

std::string at_key(const std::string& where, const std::string& key) {
  // Most keys are ours and plain, but a path of keys or a tensor name can come from a file.
  std::string q = printable(key);
  return where + ": " + (q.size() == key.size() + 2 ? key : q) + ": ";
}

std::string shown(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_number_float() && !std::isfinite(value.get<double>())) return "NaN or Infinity";
  return value.dump();
}

std::int64_t int_of(const Json& value, const std::string& key, std::int64_t min, std::int64_t max,
                    const std::string& where) {
  if (!value.is_number_integer())
    throw InputError(concat(at_key(where, key), "a whole number is expected, not ", shown(value)));
  bool fits = value.is_number_unsigned()
                  ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX)
                  : true;
  if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max)
    throw InputError(
        concat(at_key(where, key), "must be between ", min, " and ", max, ", not ", shown(value)));
  return value.get<std::int64_t>();
}

double number_of(const Json& value, const std::string& key, const std::string& where) {
  if (!value.is_number())
    throw InputError(concat(at_key(where, key), "a number is expected, not ", shown(value)));
  return value.get<double>();
}

std::string string_of(const Json& value, const std::string& key, const std::string& where) {
  if (!value.is_string())
    throw InputError(concat(at_key(where, key), "a string is expected, not ", shown(value)));
  return value.get<std::string>();
}

// The member, or null if `object` has no such key.
const Json* find(const Json& object, const std::string& key, const std::string& where) {
  if (!object.is_object())
    throw InputError(where + ": a JSON object is expected, not " + shown(object));
  auto at = object.find(key);
  return at == object.end() ? nullptr : &*at;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  JsonScanner in(text, where);
  Json value = Builder<Json>(in, text.size()).value();
  in.end();
  return value;
}

OrderedJson parse_row_json(std::string_view text, const std::string& where) {
  JsonScanner in(text, where, JsonScanner::Of::Row);
  OrderedJson value = Builder<OrderedJson>(in, text.size()).value();
  in.end();
  return value;
}

Json read_json(const std::string& path, std::size_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

const Json& json_at(const Json& object, const std::string& key, const std::string& where) {
  const Json* value = find(object, key, where);
  if (value == nullptr) throw InputError(at_key(where, key) + "missing");
  return *value;
}

std::int64_t json_int(const Json& object, const std::string& key, std::int64_t min,
                      std::int64_t max, const std::string& where) {
  return int_of(json_at(object, key, where), key, min, max, where);
}

std::int64_t json_int_or(const Json& object, const std::string& key, std::int64_t otherwise,
                         std::int64_t min, std::int64_t max, const std::string& where) {
  const Json* value = find(object, key, where);
  return value != nullptr ? int_of(*value, key, min, max, where) : otherwise;
}

double json_number(const Json& object, const std::string& key, const std::string& where) {
  return number_of(json_at(object, key, where), key, where);
}

double json_number_or(const Json& object, const std::string& key, double otherwise,
                      const std::string& where) {
  const Json* value = find(object, key, where);
  return value != nullptr ? number_of(*value, key, where) : otherwise;
}

std::string json_string(const Json& object, const std::string& key, const std::string& where) {
  return string_of(json_at(object, key, where), key, where);
}

std::string json_string_or(const Json& object, const std::string& key, const std::string& otherwise,
                           const std::string& where) {
  const Json* value = find(object, key, where);
  return value != nullptr ? string_of(*value, key, where) : otherwise;
}

bool json_bool_or(const Json& object, const std::string& key, bool otherwise,
                  const std::string& where) {
  const Json* value = find(object, key, where);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean())
    throw InputError(concat(at_key(where, key), "true or false is expected, not ", shown(*value)));
  return value->get<bool>();
}

std::string read_json_text(const std::string& path, std::size_t max_bytes) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::string text = read_file(path, max_bytes);
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  return text;
}

}  // namespace lk
