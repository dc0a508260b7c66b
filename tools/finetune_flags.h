// The flags of finetune, by the headings under which --help shows them, and those of them that plan has.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "processes.h"
#include "row_flags.h"
#include "run/finetune.h"

namespace lk::program {

// Flags whose text is converted to a setting.
struct FinetuneText {
  std::optional<std::string> targets, methods;
  std::string layers, rank_pattern, alpha_pattern, init = "kaiming";
  std::string memory, memory_limit, recompute = "none", base_precision = "auto", keep_dense;
  std::string offload_base = "0", shard_base = "0";
  LongRowFlags long_rows;
  std::string train_on = "assistant", columns;
  std::optional<std::string> sweep;
  ProcessFlags processes;
  bool no_shuffle = false, no_verify = false;
};

// Adds all of them: values go into `settings`, what must be converted first into `text`. Both must
// outlive the parsing.
void add_finetune_flags(CLI::App& app, FinetuneSettings& settings, FinetuneText& text);
// Those of them that say what is trained, and what of the base and of a step is held where.
void add_method_flags(CLI::App& app, FinetuneSettings& settings, FinetuneText& text);
void add_memory_flags(CLI::App& app, FinetuneSettings& settings, FinetuneText& text);
// Converts what the flags gave as text. Throws UsageError naming the flag.
void settle(FinetuneSettings& settings, const FinetuneText& text);

}  // namespace lk::program
