// The formats that rows come in, told apart by their keys.
//
// text               {"text"}
// prompt-completion  {"prompt","completion"}: strings, or lists of messages ("tools" beside them)
// alpaca             {"instruction","output"[,"input","system"]}, Dolly's {"context","response"}: a
//                    user turn "instruction\ninput" and an assistant turn
// messages           {"messages":[{"role","content"}][,"tools","system"]}
// sharegpt           {"conversations":[{"from","value"}][,"tools","system"]}
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/chat_rows.h"

namespace lk {

// Every name of a row format, as --format takes it: "text, prompt-completion, ...".
std::string row_format_names();
bool is_row_format(const std::string& name);
// The format of a row with these keys. InputError naming `where` and the keys if there is none.
std::string detect_row_format(const OrderedJson& object, const std::string& where);

// What a row says, in whichever format it was written.
struct RowContent {
  std::string prompt, completion;    // plain text: the completion is trained, or
  std::optional<ChatRow> chat;       // turns for a chat template
  std::vector<std::string> ignored;  // keys of mere records
};

// Reads a row. `named`: the user named the format, so that keys of other formats are mere records.
// InputError naming `where` and the key for what is missing, wrong, or would be dropped.
RowContent read_row(const OrderedJson& object, const std::string& format, bool named,
                    const std::string& where);

}  // namespace lk
