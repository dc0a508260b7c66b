#include "text/data_file.h"

#include <algorithm>

#include "io/printable.h"
#include "io/sha256.h"
#include "io/utf8.h"
#include "tensor/error.h"
#include "text/row_splitter.h"

namespace lk {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
// Of columns. Spreadsheets write semicolons where the comma is the decimal point, databases bars.
constexpr std::string_view kSeparators = ",\t;|";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool ends_with_any(const std::string& name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

std::string_view first_line(std::string_view text) {
  return text.substr(0, text.find_first_of("\r\n"));
}

// The first record without its quoted fields. Whatever separates the columns, a field begins behind it.
std::string outside_quotes(std::string_view head) {
  std::string out;
  bool begins = true, inside = false;
  for (const char c : head) {
    if (inside) {
      inside = c != '"';
    } else if (c == '"' && begins) {
      inside = true;  // also of a quote that is written twice
    } else if (c == '\n' || c == '\r') {
      break;
    } else {
      out += c;
      begins = kSeparators.find(c) != kSeparators.npos;
    }
  }
  return out;
}

// What separates the columns of the header in front: the first of kSeparators that it has.
char separator_of(std::string_view head) {
  const std::string header = outside_quotes(head);
  for (const char separator : kSeparators)
    if (header.find(separator) != header.npos) return separator;
  return ',';
}

// "CSV" or "TSV" if the first line names a column that every such file of some row format has, or
// one of `columns`.
std::string container_of_header(std::string_view head, const std::vector<std::string>& columns) {
  const std::string_view line = first_line(head);
  const char separator = outside_quotes(head).find('\t') != head.npos ? '\t' : separator_of(head);
  for (std::size_t begin = 0; begin <= line.size();) {
    const std::size_t end = std::min(line.find(separator, begin), line.size());
    std::string_view name = line.substr(begin, end - begin);
    if (name.size() > 1 && name.front() == '"' && name.back() == '"')
      name = name.substr(1, name.size() - 2);
    if (name == "text" || name == "prompt" || name == "instruction" ||
        std::find(columns.begin(), columns.end(), name) != columns.end())
      return separator == '\t' ? "TSV" : "CSV";
    begin = end + 1;
  }
  return "";
}

bool is_json_name(const std::string& name) {
  return ends_with_any(ascii_lower_case(name), {".jsonl", ".json", ".ndjson"});
}

// Refuses what is not JSON lines, though it is called so: the parser would only see a broken line.
void check_json_lines(std::string_view head, const std::string& name) {
  const std::size_t begin = head.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return;
  head.remove_prefix(begin);
  std::string_view line = head.substr(0, head.find('\n'));
  line = line.substr(0, line.find_last_not_of(" \t\r") + 1);
  const bool ends = line.size() < head.size();
  if (ends && (line == "{" || (line.front() == '{' && (line.back() == ',' || line.back() == '['))))
    throw InputError(name +
                     ":1: the first object takes several lines: write each object on one line, or "
                     "all of them as an array, [{...}, ...]");
  if (line.front() == '{' || OrderedJson::accept(line.begin(), line.end())) return;
  const std::string header = container_of_header(head, {});
  const bool tabs = line.find('\t') != std::string_view::npos;
  if (!header.empty())
    throw InputError(concat(name, ": is ", header, " by its first line: call it ",
                            header == "CSV" ? ".csv" : ".tsv"));
  // A bad first line above good ones is a bad row like any other.
  if (line.find_first_of(kSeparators) != std::string_view::npos && head.find("\n{") == head.npos)
    throw InputError(concat(name, ":1: ", printable(line), " is no JSON; if this is the header of ",
                            tabs ? "TSV, call the file .tsv" : "CSV, call the file .csv"));
  const bool value = line.front() == '"' || line == "null" || line == "true" || line == "false" ||
                     (line.front() >= '-' && line.front() <= '9');
  if (!value && !is_json_name(name) && head.find("\n{") == head.npos)
    throw InputError(concat(name, ":1: ", printable(line.substr(0, 100)),
                            " is no JSON; plain text is read from a file called .txt, or with "
                            "`format` txt"));
}

std::string container_of(std::string_view head, const std::string& name,
                         const std::vector<std::string>& columns) {
  const std::size_t first = head.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && head[first] == '[') return "JSON array";
  if (first != std::string_view::npos && head[first] == '{') return "JSON lines";
  const std::string lower = ascii_lower_case(name);
  if (lower.ends_with(".csv")) return "CSV";
  if (ends_with_any(lower, {".tsv", ".tab"})) return "TSV";
  if (is_json_name(name)) return "JSON lines";
  const std::string of_header = container_of_header(head, columns);
  return of_header.empty() ? "JSON lines" : of_header;
}

std::unique_ptr<RowSplitter> splitter_for(const std::string& container, std::string_view head,
                                          const std::string& name, const RawRowVisitor& visit) {
  if (container == "CSV") return split_csv(name, separator_of(head), visit);
  if (container == "TSV") return split_csv(name, '\t', visit);
  return container == "JSON array" ? split_array(name, visit) : split_lines(name, visit);
}

}  // namespace

bool is_text_name(const std::string& name) { return ascii_lower_case(name).ends_with(".txt"); }

std::size_t byte_order_mark(std::string_view head) {
  return head.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
}

void refuse_other_formats(std::string_view head, const std::string& name) {
  static constexpr struct {
    std::string_view magic;
    const char* what;
  } kFormats[] = {
      {{"\x1f\x8b", 2}, "gzip: decompress it first"},
      {{"\x28\xb5\x2f\xfd", 4}, "zstd: decompress it first"},
      {{"\xfd\x37zXZ", 5}, "xz: decompress it first"},
      {"BZh", "bzip2: decompress it first"},
      {{"PK\x03\x04", 4}, "a zip archive: unpack it first"},
      {"PAR1", "parquet: convert it to .jsonl first"},
      {"ARROW1", "Arrow: convert it to .jsonl first"},
      {{"\xff\xff\xff\xff", 4}, "Arrow: convert it to .jsonl first"},
      {"GGUF", "a GGUF model, not data"},
      {{"\xff\xfe", 2}, "UTF-16: save it as UTF-8"},
      {{"\xfe\xff", 2}, "UTF-16: save it as UTF-8"},
  };
  const bool zip = head.starts_with("PK\x03\x04"), ole = head.starts_with("\xd0\xcf\x11\xe0");
  if ((zip && ends_with_any(ascii_lower_case(name), {".xlsx", ".ods", ".numbers"})) || ole)
    throw InputError(name + ": this is a spreadsheet: save it as .csv");
  for (const auto& [magic, what] : kFormats)
    if (head.starts_with(magic)) throw InputError(name + ": this is " + what);
}

const std::string& RawRow::where() {
  if (where_.empty()) {
    where_ = concat(*name_, ":", line_);
    if (element_ > 0) where_ += concat(": element ", element_);
  }
  return where_;
}

OrderedJson RawRow::parse() {
  if (text_.size() > kMaxRowBytes)
    throw InputError(concat(where(), ": the row has over ", kMaxRowBytes, " bytes"));
  if (header_) return parse_csv_record(text_, *header_, where());
  OrderedJson object = parse_row_json(text_, where());
  if (!object.is_object()) throw InputError(where() + ": not a JSON object");
  return object;
}

FileRead for_each_raw_row(const ByteSource& data, const RawRowVisitor& visit,
                          const std::vector<std::string>& columns) {
  if (data.size() == 0) throw InputError(data.name() + ": the file is empty");
  FileRead result;
  Sha256 sha;
  std::unique_ptr<RowSplitter> splitter;
  bool going = true;
  std::string chunk;
  // Reads up to the size at opening: a file that grows meanwhile is read as it was.
  for (std::uint64_t at = 0; at < data.size(); at += chunk.size()) {
    chunk.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kChunkBytes, data.size() - at)));
    data.read(at, chunk.data(), chunk.size());
    sha.update(chunk.data(), chunk.size());
    std::string_view piece = chunk;
    if (at == 0) {
      refuse_other_formats(piece, data.name());
      piece.remove_prefix(byte_order_mark(piece));
      result.container = container_of(piece, data.name(), columns);
      if (result.container == "JSON lines") check_json_lines(piece, data.name());
      splitter = splitter_for(result.container, piece, data.name(), visit);
    }
    going = going && splitter->add(piece);
  }
  if (going) splitter->end();
  result.sha256 = sha.hex();
  return result;
}

std::string for_each_json_row(const ByteSource& data, const JsonRowVisitor& visit) {
  auto parsed = [&](RawRow&& row) { return visit(Json(row.parse()), row.where()); };
  return for_each_raw_row(data, parsed).sha256;
}

void for_each_renamed_row(const ByteSource& data, const Columns& columns,
                          const RenamedRowVisitor& visit) {
  auto renamed = [&](RawRow&& raw) {
    const OrderedJson row = raw.parse();
    for (const Columns::Pair& pair : columns.pairs())
      if (!row.contains(pair.theirs))
        throw InputError(concat(raw.where(), ": ", columns.missing(pair, row)));
    std::vector<std::string> ignored;
    return visit(columns.rename(row, ignored), raw.where());
  };
  for_each_raw_row(data, renamed, columns.theirs());
}

}  // namespace lk
