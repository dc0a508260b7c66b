// The prompts that `generate` reads from a file.
#pragma once

#include <string>
#include <vector>

#include "text/columns.h"

namespace lk::program {

struct PromptRow {
  std::string text, adapter;  // adapter: a name, "" for none
  std::string where;          // "file:line", for errors
};

// Reads {"prompt": text, "adapter": name or null} from each row; what `evaluate` compares answers
// with may stand beside them. Throws InputError naming file, line and key, also for a key that is
// neither used nor a mere record, and if the file has no rows.
// `columns`: which keys of the file stand for these.
std::vector<PromptRow> read_prompt_rows(const std::string& path, const Columns& columns);

}  // namespace lk::program
