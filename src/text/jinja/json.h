// Turns JSON into values of the template language.
#pragma once

#include "io/json.h"
#include "text/jinja/value.h"

namespace lk::jinja {

// The value of `json`; `marked`: whether its strings are marked as coming from a conversation.
Value from_json(const Json& json, Budget& budget, bool marked = false);
Value from_json(const OrderedJson& json, Budget& budget, bool marked = false);

}  // namespace lk::jinja
