// The prompts that `generate` reads from a file.
#pragma once

#include <string>
#include <vector>

namespace lk::program {

struct PromptRow {
  std::string text, adapter;  // adapter: a name, "" for none
  std::string where;          // "file:line", for errors
};

// Reads {"prompt": text, "adapter": name or null} from each line. Throws InputError naming file,
// line and key, also if the file has no rows.
std::vector<PromptRow> read_prompt_rows(const std::string& path);

}  // namespace lk::program
