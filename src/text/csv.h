// CSV and TSV with a header (RFC 4180): fields in double quotes may hold separators, line breaks,
// and quotes written twice.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"

namespace lk {

struct CsvHeader {
  char separator;                  // ',', ';' or a tab
  std::vector<std::string> names;  // one a column, all different
};

// Follows quotes through a text, character by character.
class CsvQuotes {
 public:
  explicit CsvQuotes(char separator) : separator_(separator) {}
  enum class Kind { Text, Quote, Separator, RecordEnd };
  // What `c` is: part of a field's text, a quote that is none, the border of two fields, or the
  // line feed at the end of a record.
  Kind take(char c);
  bool inside() const { return state_ == State::Inside; }  // a quoted field is open
  bool closed() const { return state_ == State::Closed; }  // a quoted field has just ended

 private:
  enum class State { Start, Plain, Inside, Closed };
  char separator_;
  State state_ = State::Start;
};

// The header in a file's first record. InputError naming `where` for a name that occurs twice.
CsvHeader parse_csv_header(std::string_view record, char separator, const std::string& where);
// An object of the record's fields, all strings. InputError naming `where` if it has more or fewer
// than the header, a quote is not closed, text follows a closing quote, or it is not UTF-8.
OrderedJson parse_csv_record(std::string_view record, const CsvHeader& header,
                             const std::string& where);

}  // namespace lk
