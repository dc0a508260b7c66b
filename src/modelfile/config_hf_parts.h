// What the files that read config.json share.
#pragma once

#include <cstdint>
#include <string>

#include "io/json.h"
#include "modelfile/family_files.h"
#include "nn/config.h"
#include "tensor/error.h"

namespace lk {

inline constexpr std::int64_t kAnyInt = std::int64_t{1} << 40;  // validate() has the real bounds

template <class... Args>
[[noreturn]] void refuse(const std::string& where, const Args&... message) {
  throw InputError(concat(where, ": ", message...));
}

// Whether config.json says anything: a null means as much as an absent key, wherever it is allowed.
inline bool given(const Json& json, const char* key) {
  auto it = json.find(key);
  return it != json.end() && !it->is_null();
}

// Reads the base of the rotary angles and how they are scaled. `where` names the file in messages.
void parse_rope_fields(const Json& json, const FamilyFiles& files, ModelConfig& config,
                       const std::string& where);

}  // namespace lk
