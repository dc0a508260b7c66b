#include "text/dataset.h"

#include <algorithm>
#include <exception>

#include "io/hex.h"
#include "io/input_file.h"
#include "io/sha256.h"
#include "io/utf8.h"
#include "tensor/error.h"
#include "text/jsonl.h"
#include "text/rows.h"

namespace lk {

namespace {

constexpr std::size_t kMaxTextFile = std::size_t{1} << 30;
// Lines become rows in blocks of this size: work for many threads, and little memory.
constexpr std::size_t kBlockLines = 4096, kBlockBytes = std::size_t{4} << 20;

// Checks one finished row, cuts it if that is wanted, counts it and keeps it.
void keep(Row row, const std::string& where, const Tokenizer& tokenizer, const DatasetOptions& o,
          Dataset& data) {
  const auto limit = static_cast<std::size_t>(o.seq_len);
  ++data.rows_read;
  if (row.ids.size() > limit) {
    if (!o.truncate)
      throw InputError(concat(where, ": the row has ", row.ids.size(), " tokens, over --seq-len ",
                              o.seq_len, "; pass --truncate to cut it"));
    ++data.rows_truncated;
    data.tokens_truncated += static_cast<std::int64_t>(row.ids.size() - limit);
    row.ids.resize(limit);
    row.supervised.resize(limit);
    if (row.n_supervised() == 0)
      throw InputError(where + ": cut to --seq-len, the row has no token left to train on");
  }
  if (row.n_supervised() == 0) throw InputError(where + ": the row has no token to train on");

  data.tokens += std::ssize(row.ids);
  data.lost_bytes += static_cast<std::int64_t>(row.lost_bytes);
  data.supervised_tokens += row.n_supervised();
  std::size_t last = row.ids.size();
  while (last > 0 && row.supervised[last - 1] == 0) --last;
  const auto& stops = tokenizer.stop_ids();
  if (last > 0 && std::find(stops.begin(), stops.end(), row.ids[last - 1]) != stops.end())
    ++data.rows_ending_in_eos;
  data.rows.push_back(std::move(row));
}

// Encodes plain text whole and cuts it into windows, the last one shorter. A last window of a
// single token would have nothing to predict and is left out.
void load_text(const Tokenizer& tokenizer, const DatasetOptions& o, Dataset& data) {
  const std::string text = read_file(data.path, kMaxTextFile);
  refuse_other_formats(text, data.path);
  if (std::size_t ok = utf8_valid_prefix(text); ok != text.size())
    throw InputError(concat(data.path, ": not valid UTF-8 at byte ", ok));
  Sha256 sha;
  sha.update(text.data(), text.size());
  data.sha256 = sha.hex();
  const Tokenizer::Encoding all = tokenizer.encode_with_offsets(text);
  data.lost_bytes = static_cast<std::int64_t>(all.lost_bytes);
  const auto window = static_cast<std::size_t>(o.seq_len);
  std::size_t line = 1, counted = 0;
  for (std::size_t begin = 0; begin + 1 < all.ids.size(); begin += window) {
    if (o.max_rows >= 0 && data.rows_read >= o.max_rows) return;
    const std::size_t end = std::min(begin + window, all.ids.size());
    for (; counted < all.begins[begin]; ++counted) line += text[counted] == '\n';
    Row row;
    row.line = line;
    row.ids.assign(all.ids.begin() + static_cast<std::ptrdiff_t>(begin),
                   all.ids.begin() + static_cast<std::ptrdiff_t>(end));
    row.supervised.assign(row.ids.size(), 1);
    keep(std::move(row), concat(data.path, ":", line), tokenizer, o, data);
  }
}

// A row, or why there is none.
struct Made {
  Row row;
  std::exception_ptr failure;
};

// Parses and encodes lines on all cores; keeps rows, or throws the failure of the first bad line,
// in the file's order, so that the result is that of one line at a time.
class ParallelRows {
 public:
  ParallelRows(RowBuilder& builder, const Tokenizer& tokenizer, const DatasetOptions& options,
               Dataset& data)
      : builder_(builder), tokenizer_(tokenizer), options_(options), data_(data) {}

  // Whether more lines are wanted.
  bool add(JsonLine&& line) {
    bytes_ += line.bytes();
    lines_.push_back(std::move(line));
    // The first row is made alone: it settles what the others are.
    if (data_.rows_read > 0 && lines_.size() < kBlockLines && bytes_ < kBlockBytes) return true;
    return flush();
  }

  bool flush() {
    std::vector<Made> made(lines_.size());
#pragma omp parallel for schedule(dynamic, 16)
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      try {
        made[i].row = builder_.build(lines_[i].parse(), lines_[i].where());
        made[i].row.line = lines_[i].number();
      } catch (...) {
        made[i].failure = std::current_exception();
      }
    }
    for (std::size_t i = 0; i < made.size() && !full(); ++i) {
      if (made[i].failure) std::rethrow_exception(made[i].failure);
      keep(std::move(made[i].row), lines_[i].where(), tokenizer_, options_, data_);
    }
    lines_.clear();
    bytes_ = 0;
    return !full();
  }

  bool full() const { return options_.max_rows >= 0 && data_.rows_read >= options_.max_rows; }

 private:
  RowBuilder& builder_;
  const Tokenizer& tokenizer_;
  const DatasetOptions& options_;
  Dataset& data_;
  std::vector<JsonLine> lines_;
  std::size_t bytes_ = 0;
};

}  // namespace

Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer,
                     const std::optional<std::string>& template_name,
                     const DatasetOptions& options) {
  if (options.seq_len < 2) throw UsageError("--seq-len must be at least 2");
  Dataset data;
  data.path = path;
  data.format = options.format;
  if (data.format == "txt" || (data.format == "auto" && path.ends_with(".txt"))) {
    data.format = "txt";
    load_text(tokenizer, options, data);
  } else {
    RowBuilder builder(tokenizer, template_name, options.format);
    ParallelRows rows(builder, tokenizer, options, data);
    data.sha256 = for_each_raw_json_line(
        path, [&](JsonLine&& line) { return !rows.full() && rows.add(std::move(line)); });
    rows.flush();
    data.format = builder.format();
  }
  if (data.rows.empty() && options.max_rows != 0) throw InputError(path + ": no rows");
  return data;
}

std::string show_row(const Row& row, const Tokenizer& tokenizer, bool colour) {
  const char *open = colour ? "\x1b[32m" : "[", *close = colour ? "\x1b[0m" : "]";
  std::string out;
  for (std::size_t i = 0; i < row.ids.size(); ++i) {
    const bool trained = i > 0 && row.supervised[i] != 0;
    const std::string bytes = tokenizer.token_text(row.ids[i]);
    if (trained) out += open;
    for (std::size_t at = 0; at < bytes.size();) {
      const auto byte = static_cast<unsigned char>(bytes[at]);
      const std::size_t length =
          utf8_checked_length(bytes.data() + at, bytes.data() + bytes.size());
      if (byte == '\n') {
        out += "\\n";
      } else if (byte == '\t') {
        out += "\\t";
      } else if (byte == '\r') {
        out += "\\r";
      } else if (byte < 0x20 || byte == 0x7F || length == 0) {
        // A file must not steer the terminal; part of a character is shown as its bytes.
        out += "\\x";
        append_hex(out, byte);
      } else {
        out += bytes.substr(at, length);
        at += length;
        continue;
      }
      ++at;
    }
    if (trained) out += close;
  }
  return out;
}

}  // namespace lk
