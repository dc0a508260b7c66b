#include "text/csv.h"

#include <algorithm>
#include <memory>

#include "io/printable.h"
#include "io/utf8.h"
#include "tensor/error.h"
#include "text/row_splitter.h"

namespace lk {

CsvQuotes::Kind CsvQuotes::take(char c) {
  if (state_ == State::Inside) {
    if (c != '"') return Kind::Text;
    state_ = State::Closed;
    return Kind::Quote;
  }
  if (c == separator_ || c == '\n') {
    state_ = State::Start;
    return c == '\n' ? Kind::RecordEnd : Kind::Separator;
  }
  if (c == '"' && state_ == State::Start) {
    state_ = State::Inside;
    return Kind::Quote;
  }
  if (c == '"' && state_ == State::Closed) {  // the second of two quotes, which stand for one
    state_ = State::Inside;
    return Kind::Text;
  }
  // The text behind a closing quote is left in that state, for the caller to refuse.
  if (state_ == State::Start) state_ = State::Plain;
  return Kind::Text;
}

namespace {

std::vector<std::string> fields_of(std::string_view record, char separator,
                                   const std::string& where) {
  if (record.ends_with('\r')) record.remove_suffix(1);
  if (const std::size_t ok = utf8_valid_prefix(record); ok != record.size())
    throw InputError(concat(where, ": not valid UTF-8 at byte ", ok, " of the row"));
  std::vector<std::string> fields(1);
  CsvQuotes quotes(separator);
  for (char c : record) {
    switch (quotes.take(c)) {
      case CsvQuotes::Kind::Text:
        if (quotes.closed())
          throw InputError(concat(
              where, ": column ", fields.size(), ": ", printable(std::string(1, c)),
              " follows a closing quote. A quote inside a quoted field is written twice, and here ",
              separator == '\t' ? "a tab" : std::string(1, separator),
              " separates columns: of comma, tab, semicolon and bar the first that the header "
              "has"));
        fields.back() += c;
        break;
      case CsvQuotes::Kind::Separator:
        fields.emplace_back();
        break;
      default:
        break;
    }
  }
  if (quotes.inside())
    throw InputError(concat(where, ": column ", fields.size(), ": the quote is never closed"));
  return fields;
}

class CsvSplitter : public RowSplitter {
 public:
  CsvSplitter(const std::string& name, char separator, const RawRowVisitor& visit)
      : name_(name), separator_(separator), visit_(visit), quotes_(separator) {}

  bool add(std::string_view piece) override {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < piece.size() && going_; ++i) {
      const bool ends = quotes_.take(piece[i]) == CsvQuotes::Kind::RecordEnd;
      lines_ += piece[i] == '\n';
      if (!ends) continue;
      record_.append(piece, begin, i - begin);
      begin = i + 1;
      end_record();
    }
    if (!going_) return false;
    record_.append(piece, begin);
    if (record_.size() > kMaxRowBytes) end_record(), going_ = false;  // refused: no need to hold it
    return going_;
  }

  void end() override { end_record(); }

 private:
  void end_record() {
    if (record_.find_first_not_of('\r') != std::string::npos) {
      if (!header_ && record_.find('\r') < record_.size() - 1)
        throw InputError(concat(name_, ":", first_line_,
                                ": a carriage return that ends no line; lines end in a line feed, "
                                "or in both"));
      if (!header_)
        header_ = std::make_shared<const CsvHeader>(
            parse_csv_header(record_, separator_, concat(name_, ":", first_line_)));
      else
        going_ = visit_(RawRow(name_, first_line_, std::move(record_), 0, header_));
    }
    record_.clear();
    first_line_ = lines_;
  }

  const std::string& name_;
  char separator_;
  const RawRowVisitor& visit_;
  CsvQuotes quotes_;
  std::shared_ptr<const CsvHeader> header_;
  std::string record_;                      // the part of the current record that is read
  std::size_t first_line_ = 1, lines_ = 1;  // where it begins; the line that is being read
  bool going_ = true;
};

}  // namespace

CsvHeader parse_csv_header(std::string_view record, char separator, const std::string& where) {
  CsvHeader header{separator, fields_of(record, separator, where)};
  for (auto at = header.names.begin(); at != header.names.end(); ++at)
    if (std::find(header.names.begin(), at, *at) != at)
      throw InputError(where + ": two columns are called " + printable(*at));
  return header;
}

OrderedJson parse_csv_record(std::string_view record, const CsvHeader& header,
                             const std::string& where) {
  std::vector<std::string> fields = fields_of(record, header.separator, where);
  if (fields.size() != header.names.size())
    throw InputError(concat(where, ": the row has ", fields.size(), " fields, the header ",
                            header.names.size()));
  OrderedJson object = OrderedJson::object();
  for (std::size_t i = 0; i < fields.size(); ++i) object[header.names[i]] = std::move(fields[i]);
  return object;
}

std::unique_ptr<RowSplitter> split_csv(const std::string& name, char separator,
                                       const RawRowVisitor& visit) {
  return std::make_unique<CsvSplitter>(name, separator, visit);
}

}  // namespace lk
