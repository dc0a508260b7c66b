// Strict JSON: nlohmann::json behind a parser that refuses what the world's readers disagree on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "io/json_fwd.h"

namespace lk {

// Parses one JSON text. Refuses, with an InputError naming `where` and the byte offset, duplicate
// keys, depth over 64, invalid UTF-8, lone surrogates, BOM, NaN/Infinity, numbers out of double's
// range, trailing bytes, and values that would take more memory than 64 MiB and eight times the
// text. Integers that fit stay exact (u64 / i64).
Json parse_json(std::string_view text, const std::string& where);
// The text of a file of at most max_bytes, without a UTF-8 byte order mark at its start, which other
// tools write and parse_json() refuses. Throws as read_file() does.
std::string read_json_text(const std::string& path, std::size_t max_bytes);
// Parses a row of data as parse_json() does, but keeps the order of keys, and reads NaN, Infinity and
// -Infinity as numbers: whoever uses such a value must refuse it. Refuses integers that don't fit.
OrderedJson parse_row_json(std::string_view text, const std::string& where);
// Reads a whole regular file of at most max_bytes (refused before it is read) and parses it.
Json read_json(const std::string& path, std::size_t max_bytes = std::size_t{64} << 20);

// The text of a value, on one line or indented. What is not UTF-8 in its strings, as a path may be,
// becomes U+FFFD.
template <class J>
std::string json_text(const J& value, int indent = -1) {
  return value.dump(indent, ' ', false, J::error_handler_t::replace);
}

// Checked access to members. `where` names the file; errors name file and key: "config.json:
// hidden_size: ...".
const Json& json_at(const Json& object, const std::string& key, const std::string& where);
std::int64_t json_int(const Json& object, const std::string& key, std::int64_t min,
                      std::int64_t max, const std::string& where);
std::int64_t json_int_or(const Json& object, const std::string& key, std::int64_t otherwise,
                         std::int64_t min, std::int64_t max, const std::string& where);
double json_number(const Json& object, const std::string& key, const std::string& where);
double json_number_or(const Json& object, const std::string& key, double otherwise,
                      const std::string& where);
std::string json_string(const Json& object, const std::string& key, const std::string& where);
std::string json_string_or(const Json& object, const std::string& key, const std::string& otherwise,
                           const std::string& where);
bool json_bool_or(const Json& object, const std::string& key, bool otherwise,
                  const std::string& where);

}  // namespace lk
