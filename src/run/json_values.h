// Values as the JSON of runs has them: null where there is nothing to say.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "io/json.h"

namespace lk {

// The text, or null if it is empty.
inline Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

// The number, or null if it is not finite, for which JSON has no word.
inline Json finite_or_null(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

}  // namespace lk
