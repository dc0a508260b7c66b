#include "text/jsonl.h"

#include <algorithm>
#include <cstring>

#include "io/input_file.h"
#include "io/sha256.h"
#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr const char* kBlank = " \t\r\n";

bool blank(std::string_view line) {
  return line.find_first_not_of(kBlank) == std::string_view::npos;
}

void visit_array(const InputFile& file, const std::string& path, const RawJsonLineVisitor& visit) {
  if (file.size() > 8 * kMaxLineBytes)
    throw InputError(concat(path, ": a JSON array of ", file.size(),
                            " bytes is too big to hold; write one object a line (.jsonl)"));
  std::string text(file.size(), '\0');
  file.read(0, text.data(), text.size());
  Json array = parse_json(text, path);
  std::size_t number = 0;
  for (Json& element : array)
    if (!visit(JsonLine(path, ++number, std::move(element)))) return;
}

}  // namespace

void refuse_other_formats(std::string_view head, const std::string& path) {
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
      {{"\xef\xbb\xbf", 3}, "UTF-8 with a byte order mark: save it without"},
      {{"\xff\xfe", 2}, "UTF-16: save it as UTF-8"},
      {{"\xfe\xff", 2}, "UTF-16: save it as UTF-8"},
  };
  for (const auto& [magic, what] : kFormats)
    if (head.starts_with(magic)) throw InputError(path + ": this is " + what);
}

const std::string& JsonLine::where() {
  if (where_.empty()) where_ = concat(*path_, in_array_ ? ": element " : ":", number_);
  return where_;
}

Json JsonLine::parse() {
  if (text_.size() > kMaxLineBytes)
    throw InputError(concat(where(), ": the line has over ", kMaxLineBytes, " bytes"));
  Json object = in_array_ ? std::move(element_) : parse_json(text_, where());
  if (!object.is_object()) throw InputError(where() + ": not a JSON object");
  return object;
}

std::string for_each_raw_json_line(const std::string& path, const RawJsonLineVisitor& visit) {
  const InputFile file(path);
  if (file.size() == 0) throw InputError(path + ": the file is empty");
  Sha256 sha;
  std::string chunk, line;  // line: the part of the current line that earlier chunks held
  std::size_t number = 1;
  bool going = true;
  auto end_line = [&] {
    if (!blank(line)) going = visit(JsonLine(path, number, std::move(line)));
    line.clear();
    ++number;
  };
  // Reads up to the size at opening: a file that grows meanwhile is read as it was.
  for (std::uint64_t at = 0; at < file.size(); at += chunk.size()) {
    chunk.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kChunkBytes, file.size() - at)));
    file.read(at, chunk.data(), chunk.size());
    sha.update(chunk.data(), chunk.size());
    if (at == 0) {
      refuse_other_formats(chunk, path);
      const std::size_t first = chunk.find_first_not_of(kBlank);
      if (first != std::string::npos && chunk[first] == '[') {
        visit_array(file, path, visit);
        going = false;
      }
    }
    for (std::size_t begin = 0; going && begin < chunk.size();) {
      std::size_t end = chunk.find('\n', begin);
      const bool ended = end != std::string::npos;
      if (!ended) end = chunk.size();
      line.append(chunk, begin, end - begin);
      begin = end + 1;
      if (line.size() > kMaxLineBytes) {  // parse() refuses it: no need to hold the rest
        visit(JsonLine(path, number, std::move(line)));
        going = false;
      } else if (ended) {
        end_line();
      }
    }
  }
  if (going) end_line();
  return sha.hex();
}

std::string for_each_json_line(const std::string& path, const JsonLineVisitor& visit) {
  return for_each_raw_json_line(path,
                                [&](JsonLine&& line) { return visit(line.parse(), line.where()); });
}

}  // namespace lk
