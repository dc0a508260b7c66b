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

// Reads {"prompt": text, "adapter": name or null} from each line. Throws InputError naming file,
// line and key, also if the file has no rows.
// `columns`: which keys of the file stand for these.
std::vector<PromptRow> read_prompt_rows(const std::string& path, const Columns& columns);

}  // namespace lk::program
