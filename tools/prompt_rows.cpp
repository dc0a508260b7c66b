#include "prompt_rows.h"

#include "io/json.h"
#include "tensor/error.h"
#include "text/data_file.h"
#include "text/row_keys.h"

namespace lk::program {

std::vector<PromptRow> read_prompt_rows(const std::string& path, const Columns& columns) {
  for (const Columns::Pair& pair : columns.pairs())
    if (pair.ours != "prompt")
      throw UsageError(concat("--columns ", columns.text(), ": prompts have no ", pair.ours));
  std::vector<PromptRow> rows;
  for_each_renamed_row(path, columns, [&](const OrderedJson& object, const std::string& where) {
    // A file of `evaluate` holds prompts too: what answers are compared with is not for the model.
    if (columns.empty())
      refuse_unused_keys(object,
                         {"prompt", "adapter", "completion", "references", "choices", "answer"},
                         "generate", where);
    const Json row(object);
    const bool named = row.contains("adapter") && !row["adapter"].is_null();
    rows.push_back({json_string(row, "prompt", where),
                    named ? json_string(row, "adapter", where) : "", where});
    if (named && rows.back().adapter.empty())
      throw InputError(where + ": \"adapter\" is empty; null means none");
    return true;
  });
  if (rows.empty()) throw InputError(path + ": no prompts");
  return rows;
}

}  // namespace lk::program
