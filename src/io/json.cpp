#include "io/json.h"

#include "io/input_file.h"
#include "io/json_scanner.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

// Builds nlohmann values. Recursion is safe: the scanner stops at 64 levels. The values' memory is
// counted, since "[[],[],..." needs twenty times its own size. The largest tokenizer.json (30
// MB, half a million merges) needs four times.
class Builder {
 public:
  Builder(JsonScanner& in, std::size_t text_bytes)
      : in_(in), left_((std::size_t{64} << 20) + 8 * text_bytes) {}

  Json value() {
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
  Json object() {
    take(sizeof(Json::object_t) + kHeapBlock);
    Json result = Json::object();
    auto& members = result.get_ref<Json::object_t&>();
    in_.object([&](std::string key) {
      take(kTreeNode + kDestroyed + key.size());
      auto [at, is_new] = members.try_emplace(std::move(key));
      if (!is_new) in_.fail("the key " + printable(at->first) + " occurs twice");
      at->second = value();
    });
    return result;
  }
  Json array() {
    take(sizeof(Json::array_t) + 2 * kHeapBlock);
    Json result = Json::array();
    auto& items = result.get_ref<Json::array_t&>();
    in_.array([&] {
      take(kDestroyed);
      if (items.size() == items.capacity()) grow(items);
      items.push_back(value());
    });
    return result;
  }
  Json string() {
    std::string text = in_.string();
    take(sizeof(std::string) + 2 * kHeapBlock + text.size());
    return Json(std::move(text));
  }
  Json number() {
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
  void grow(Json::array_t& items) {
    const std::size_t old = items.capacity(), now = old == 0 ? 1 : 2 * old;
    take(now * sizeof(Json));
    items.reserve(now);
    left_ += old * sizeof(Json);
  }
  void take(std::size_t bytes) {
    if (bytes > left_) in_.fail("too many values for a file of this size");
    left_ -= bytes;
  }

  static constexpr std::size_t kHeapBlock = 8;  // malloc's own header
  static constexpr std::size_t kTreeNode = 96;
  static constexpr std::size_t kDestroyed = sizeof(Json);  // nlohmann's destructor lists the items

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
  Json value = Builder(in, text.size()).value();
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

}  // namespace lk
