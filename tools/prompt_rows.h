// The prompts that `generate` reads from a file.
#pragma once

#include <string>
#include <vector>

namespace lk::program {

struct PromptRow {
  std::string text, adapter;  // adapter: a name, "" for none
  std::string where;          // "file:line", for errors
};

// {"prompt": text, "adapter": name or null} of each line. Throws InputError naming file, line and
// key, also where there is no line.
std::vector<PromptRow> read_prompt_rows(const std::string& path);

}  // namespace lk::program
