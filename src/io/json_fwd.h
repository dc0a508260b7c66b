// The names Json and OrderedJson for headers: the library behind them costs seconds of compilation
// a file.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace lk {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys as written

}  // namespace lk
