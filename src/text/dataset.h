// Datasets: files of text -> rows of token ids with the trained ones marked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/byte_source.h"
#include "text/columns.h"
#include "text/row.h"
#include "text/tokenizer.h"
#include "text/train_on.h"

namespace lk {

// Makes a row that trains on `completion` after `prompt`: encode_prompt(prompt + completion),
// supervised from position len(encode_prompt(prompt)) on, or all of it if `prompt` is empty. With
// `with_eos` the tokenizer's after_text() and the end-of-text token follow, each only if the row
// does not end in it already. InputError where encode_prompt() throws it, and for `with_eos` if the
// model names no such token.
Row make_row(const Tokenizer& tokenizer, const std::string& prompt, const std::string& completion,
             bool with_eos = true);

// What happens to rows of more than seq_len tokens. Cut rows keep their first tokens; those that are
// left without a trained one are left out.
enum class LongRows { Error, Truncate, Skip };
LongRows parse_long_rows(const std::string& name);  // "error", ...; UsageError for another name
const char* long_rows_name(LongRows rule);

struct DatasetOptions {
  std::int64_t seq_len = 1024;  // most tokens in a row
  LongRows long_rows = LongRows::Error;
  bool skip_bad_rows = false;   // leave out rows that can't be read, instead of an InputError
  std::int64_t max_rows = -1;   // read only the first rows; -1 all
  std::string format = "auto";  // a row format of text/row_formats.h, txt or auto
  TrainOn train_on = TrainOn::Assistant;
  Columns columns = {};                    // which keys of the file stand for a format's
  std::optional<std::string> system = {};  // the system turn of chats that have none
};

struct Dataset {
  std::string path, format;
  std::string container;  // "JSON lines", "JSON array", "CSV", "TSV" or "text"
  std::vector<Row> rows;
  // Each row read, or made of a chat, is kept, too long, bad, or has no token left to train on once
  // it is cut.
  std::int64_t rows_read = 0, rows_too_long = 0, rows_bad = 0, rows_cut_to_nothing = 0;
  std::int64_t chats_apart = 0, rows_of_chats_apart = 0;  // chats made into a row for each turn
  std::int64_t rows_truncated = 0, tokens_truncated = 0;  // of rows that are kept
  std::string first_left_out;                             // "path:line: why"; empty: none was
  std::vector<std::string> ignored_keys;                  // of mere records, in the order met
  Columns columns;                                        // as they were read by
  std::int64_t chats = 0;                  // rows read that are chats; below 0 if nobody knows
  std::optional<std::string> system = {};  // the system turn that every chat begins with
  std::int64_t rows_of_own_system = 0;     // chats that options.system is not put to
  std::vector<std::string>
      fitted;  // what the chat template has no place for, and how it is written
  std::int64_t thoughts = 0, thoughts_lost = 0;  // of trained turns; not written by the template
  std::string first_lost_thought;                // "path:line"
  std::int64_t tokens = 0, supervised_tokens = 0;
  std::int64_t rows_ending_in_eos = 0;    // rows whose last supervised token is a stop token
  std::int64_t lost_bytes = 0;            // bytes of all rows that no token stands for
  std::int64_t rows_sharing_a_token = 0;  // whose completion begins inside the prompt's last tokens
  std::string sha256;                     // of the whole file, or of all bytes of a pipe

  // What a user should know of how the data were read, a line each.
  std::vector<std::string> remarks() const;
};

// Reads rows of JSON lines, a JSON array, CSV or TSV (format found from the first row's keys), or,
// of a name ending in .txt, windows of seq_len tokens. The template is asked for only by chats.
// Errors name path and line, the first bad one of the file. Rows are made on all cores. Throws
// InputError, UsageError, IoError.
Dataset load_dataset(const ByteSource& source, const Tokenizer& tokenizer,
                     const std::optional<std::string>& template_name,
                     const DatasetOptions& options);

// Rows that a program made itself, as a Dataset called `name`. Throws UsageError if a row's ids and
// marks of supervised tokens differ in number.
Dataset dataset_of(std::vector<Row> rows, const Tokenizer& tokenizer, const std::string& name);

// Takes rows out of `data` into a Dataset of their own, for evaluation: those of every n-th line, so
// that of a sorted file each kind goes in proportion, about `share` of all lines, at least one and
// at most `most`. All rows of a line go together; rows without a line (0) are each on their own.
// Throws UsageError if no row would be left.
Dataset split_off(Dataset& data, const Tokenizer& tokenizer, double share, std::int64_t most);

// A row as text with its trained tokens marked, for --show-rows.
std::string show_row(const Row& row, const Tokenizer& tokenizer, bool colour,
                     bool behind_virtual_tokens = false);

}  // namespace lk
