// Reads files of JSON objects: one object a line (.jsonl), or one JSON array of them.
#pragma once

#include <functional>
#include <string>

#include "io/json.h"

namespace lk {

// The longest line read. A whole array file may have eight times as many bytes.
inline constexpr std::size_t kMaxLineBytes = std::size_t{64} << 20;

// An object of the file that is not parsed yet, so that threads can parse many at a time. It refers
// to the path given to for_each_raw_json_line.
class JsonLine {
 public:
  JsonLine(const std::string& path, std::size_t number, std::string text)
      : path_(&path), number_(number), text_(std::move(text)) {}
  JsonLine(const std::string& path, std::size_t number, Json&& element)
      : path_(&path), number_(number), in_array_(true), element_(std::move(element)) {}
  // "path:line", or "path: element N" in an array file.
  const std::string& where();
  std::size_t number() const { return number_; }  // N, from 1
  std::size_t bytes() const { return text_.size(); }
  // Parses the object; to be called once. InputError naming where() if this is no JSON object, or a
  // line of over kMaxLineBytes.
  Json parse();

 private:
  const std::string* path_;
  std::size_t number_;
  bool in_array_ = false;
  std::string text_;
  Json element_;
  std::string where_;  // empty until asked for
};

// Called for each object, in the file's order; returns whether to go on.
using RawJsonLineVisitor = std::function<bool(JsonLine&& line)>;

// Calls visit for each object of the file. Streams: holds one line at a time (an array file whole).
// Blank lines are skipped; CRLF and a missing last newline are fine. InputError for a file that is
// empty, compressed or of another format, which the message names. Returns the SHA-256 of the whole
// file, also if the visitor stopped early.
std::string for_each_raw_json_line(const std::string& path, const RawJsonLineVisitor& visit);

// for_each_raw_json_line() with each line parsed; InputError for the first line that is not a JSON
// object.
using JsonLineVisitor = std::function<bool(const Json& object, const std::string& where)>;
std::string for_each_json_line(const std::string& path, const JsonLineVisitor& visit);

// InputError if `head`, the first bytes of the file, is the mark of gzip, parquet, ... or of text
// that is not UTF-8.
void refuse_other_formats(std::string_view head, const std::string& path);

}  // namespace lk
