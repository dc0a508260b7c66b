// The names Json and OrderedJson without the library behind them: for headers (it costs seconds a
// file).
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace lk {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys as written

}  // namespace lk
