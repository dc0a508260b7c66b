// Keys of a config that another tool wrote: obeyed, harmless, or unknown.
#pragma once

#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/json_fwd.h"

namespace lk {

// Null, false or empty: the feature that the key belongs to is off.
bool is_off(const Json& value);

struct UnknownKey {
  std::string key;
  std::string value;  // as JSON in ASCII, at most 200 characters of it
};
// The first key of the object `config` that no list has and whose value is not off, or nothing. Note
// [Obey or refuse] in lora/peft_config.h says why such a key is refused.
std::optional<UnknownKey> unknown_key(
    const Json& config, std::initializer_list<std::span<const std::string_view>> known);

}  // namespace lk
