// The flags that say how rows of data are read, for the programs that read them.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "text/dataset.h"

namespace lk::program {

inline constexpr const char* kDataHelp =
    "training rows: .jsonl, .json (an array), .csv, .tsv, .txt; - or a pipe";
inline constexpr const char* kFormatHelp =
    "auto, text, prompt-completion, alpaca, messages, sharegpt, user-assistant, txt";

inline constexpr const char* kColumnsHelp =
    "which keys or columns of the file stand for ours: prompt=question,completion=answer (text as "
    "it is), user=question,assistant=answer (a chat), messages=dialogue, ...";
inline constexpr const char* kSystemHelp = "the system turn of chats that have none";

inline constexpr const char* kTrainOnHelp =
    "turns of a chat to train: assistant (all, in one row where the template allows it), all (a "
    "row "
    "each, as rendered when it is the last), last";

struct LongRowFlags {
  std::string rule = "error";
  bool truncate = false;
};

// Adds --long-rows and --truncate, its short form.
inline void add_long_row_flags(CLI::App& app, LongRowFlags& flags) {
  CLI::Option* rule = app.add_option("--long-rows", flags.rule,
                                     "rows longer than --seq-len: error, truncate or skip");
  rule->capture_default_str();
  app.add_flag("--truncate", flags.truncate, "short for --long-rows truncate")->excludes(rule);
}

// What the flags ask for. Throws UsageError.
inline LongRows long_rows(const LongRowFlags& flags) {
  return flags.truncate ? LongRows::Truncate : parse_long_rows(flags.rule);
}

}  // namespace lk::program
