// Turns JSON into values of the template language.
#pragma once

#include "io/json.h"
#include "text/jinja/value.h"

namespace lk::jinja {

// Where a value stands: a member, or an item if `index` is not -1.
struct JsonPlace {
  const JsonPlace* outer = nullptr;
  std::string_view key = {};
  std::int64_t index = -1;
  std::string text() const;  // "tools[0].function.name"
};

// The value of `json`; `marked`: whether its strings are marked as coming from a conversation. Fails
// for integers that don't fit in 64 bits with a sign, naming the place, which begins with `place`.
Value from_json(const Json& json, Budget& budget, bool marked = false, const JsonPlace& place = {});
Value from_json(const OrderedJson& json, Budget& budget, bool marked = false,
                const JsonPlace& place = {});

}  // namespace lk::jinja
