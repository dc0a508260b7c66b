// Datasets: files of text -> rows of token ids with the trained ones marked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text/chat_template.h"
#include "text/row.h"
#include "text/tokenizer.h"

namespace lk {

// Makes a row that trains on `completion` after `prompt` (which may be empty): encode(prompt +
// completion), then the end-of-text token if `with_eos`, supervised from position
// len(encode(prompt)) on. InputError for text that is not UTF-8, and for `with_eos` if the
// model names no such token.
Row make_row(const Tokenizer& tokenizer, const std::string& prompt, const std::string& completion,
             bool with_eos = true);

struct DatasetOptions {
  std::int64_t seq_len = 1024;  // most tokens in a row
  bool truncate = false;        // cut longer rows instead of refusing them
  std::int64_t max_rows = -1;   // read only the first rows; -1 all
  std::string format = "auto";  // auto|text|prompt-completion|alpaca|messages|txt
};

struct Dataset {
  std::string path, format;
  std::vector<Row> rows;
  std::int64_t rows_read = 0, rows_truncated = 0, tokens_truncated = 0;
  std::int64_t tokens = 0, supervised_tokens = 0;
  std::int64_t rows_ending_in_eos = 0;  // rows whose last supervised token is a stop token
  std::int64_t lost_bytes = 0;          // bytes of all rows that no token stands for
  std::string sha256;                   // of the whole file
};

// Reads a .jsonl (format found from the first row's keys) or .txt (seq-len windows) file. The
// template is asked for only by alpaca and messages rows. Errors name path and line, the first bad
// one of the file. Rows are made on all cores. Throws InputError, UsageError, IoError.
Dataset load_dataset(const std::string& path, const Tokenizer& tokenizer,
                     const std::optional<std::string>& template_name,
                     const DatasetOptions& options);

// A row as text with its trained tokens marked, for --show-rows.
std::string show_row(const Row& row, const Tokenizer& tokenizer, bool colour);

}  // namespace lk
