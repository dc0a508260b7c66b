#include "io/config_keys.h"

#include <algorithm>

#include "io/json.h"

namespace lk {

bool is_off(const Json& value) {
  return value.is_null() || value == false || value == "" ||
         ((value.is_array() || value.is_object()) && value.empty());
}

std::optional<UnknownKey> unknown_key(
    const Json& config, std::initializer_list<std::span<const std::string_view>> known) {
  for (const auto& [key, value] : config.items()) {
    const bool listed = std::any_of(known.begin(), known.end(), [&](const auto& list) {
      return std::find(list.begin(), list.end(), key) != list.end();
    });
    if (!listed && !is_off(value)) return UnknownKey{key, value.dump(-1, ' ', true).substr(0, 200)};
  }
  return std::nullopt;
}

}  // namespace lk
