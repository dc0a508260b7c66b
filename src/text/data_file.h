// Files of rows: JSON lines, a JSON array, or CSV and TSV with a header. Each row becomes one JSON
// object, whatever holds it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_source.h"
#include "io/json.h"
#include "text/columns.h"
#include "text/csv.h"

namespace lk {

// The longest row read.
inline constexpr std::size_t kMaxRowBytes = std::size_t{64} << 20;

// Whether a file of this name is plain text, no rows: .txt, .TXT.
bool is_text_name(const std::string& name);

// A row of a file that is not parsed yet, so that threads can parse many at a time. It refers to
// the name given to its constructor.
class RawRow {
 public:
  RawRow(const std::string& name, std::size_t line, std::string text, std::size_t element = 0,
         std::shared_ptr<const CsvHeader> header = nullptr)
      : name_(&name),
        line_(line),
        text_(std::move(text)),
        element_(element),
        header_(std::move(header)) {}
  // "path:line", in an array file "path:line: element N".
  const std::string& where();
  std::size_t line() const { return line_; }  // where the row begins, from 1
  std::size_t bytes() const { return text_.size(); }
  // Parses the row; of a CSV file, its columns are members that are strings. InputError naming
  // where() if this is no JSON object, a CSV row of another number of fields than the header, or a
  // row of over kMaxRowBytes.
  OrderedJson parse();

 private:
  const std::string* name_;
  std::size_t line_;
  std::string text_;
  std::size_t element_;  // N in an array file, from 1; else 0
  std::shared_ptr<const CsvHeader> header_;
  std::string where_;  // empty until asked for
};

// Called for each row, in the file's order; returns whether to go on.
using RawRowVisitor = std::function<bool(RawRow&& row)>;

struct FileRead {
  std::string container;  // "JSON lines", "JSON array", "CSV" or "TSV"
  std::string sha256;     // of all bytes, also if the visitor stopped early
};

// Calls visit for each row of the file. Streams: holds one row at a time. What begins with [ is an
// array, what begins with { lines of JSON; else the name's ending decides, or, where it says
// nothing, whether the first line is a header with keys of a row format or with one of `columns`.
// A .csv file whose header has no comma may have tabs, semicolons or bars instead. A byte order mark at
// the start, CRLF, blank lines and a missing last newline are fine. InputError for data that are
// empty, compressed or of another format, which the message names.
FileRead for_each_raw_row(const ByteSource& data, const RawRowVisitor& visit,
                          const std::vector<std::string>& columns = {});

// for_each_raw_row() with each row parsed; InputError for the first that can't be.
using JsonRowVisitor = std::function<bool(const Json& object, const std::string& where)>;
std::string for_each_json_row(const ByteSource& data, const JsonRowVisitor& visit);

// Calls visit for each row of the file with its keys renamed; returns whether to go on. InputError for
// the first row that can't be parsed, or lacks a key that `columns` names.
using RenamedRowVisitor = std::function<bool(const OrderedJson& object, const std::string& where)>;
void for_each_renamed_row(const ByteSource& data, const Columns& columns,
                          const RenamedRowVisitor& visit);

// InputError if `head`, the first bytes of the file, is the mark of gzip, parquet, ... or of text
// that is not UTF-8.
void refuse_other_formats(std::string_view head, const std::string& name);

// The bytes of UTF-8's byte order mark at the start of `head`: 3 or 0.
std::size_t byte_order_mark(std::string_view head);

}  // namespace lk
