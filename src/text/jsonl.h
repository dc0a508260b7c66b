// Files of JSON objects: one a line (.jsonl), or one JSON array of them.
#pragma once

#include <functional>
#include <string>

#include "io/json.h"

namespace lk {

// The longest line read. A whole array file may have eight times as many bytes.
inline constexpr std::size_t kMaxLineBytes = std::size_t{64} << 20;

// Called for each object with "path:line" (or "path: element N" in an array file); returns whether
// to go on.
using JsonLineVisitor = std::function<bool(const Json& object, const std::string& where)>;

// Streams: holds one line at a time (an array file whole). Blank lines are skipped, CRLF and a
// missing last newline are fine. InputError for anything that is not a JSON object, a file that is
// empty, compressed or of another format (said by name), and a line over kMaxLineBytes. Returns the
// SHA-256 of the whole file, also if the visitor stopped early.
std::string for_each_json_line(const std::string& path, const JsonLineVisitor& visit);

// InputError if `head`, the first bytes of the file, is the mark of gzip, parquet, ... or of text
// that is not UTF-8.
void refuse_other_formats(std::string_view head, const std::string& path);

}  // namespace lk
