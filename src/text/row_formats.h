// The formats that rows come in, told apart by their keys.
//
// text               {"text"}
// prompt-completion  {"prompt","completion"}: strings, or lists of messages ("tools" beside them)
// alpaca             {"instruction","output"[,"input","system"]}, Dolly's {"context","response"}: a
//                    user turn "instruction\ninput" and an assistant turn
// messages           {"messages":[{"role","content"}][,"tools","system"]}
// sharegpt           {"conversations":[{"from","value"}][,"tools","system"]}
// user-assistant     {"user","assistant"[,"tools","system"]}: a user turn and an assistant turn
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/chat_rows.h"
#include "text/columns.h"

namespace lk {

// Every name of a row format, as --format takes it: "text, prompt-completion, ...".
std::string row_format_names();
bool is_row_format(const std::string& name);
// Every key that a row format or `evaluate` reads.
std::vector<std::string> row_format_keys();

// The format of a row with these keys, "" if there is none. With `columns` it is one that reads all
// that they name.
std::string find_row_format(const OrderedJson& object, const Columns& columns = {});
// As find_row_format(); InputError naming `where` and the keys if there is none.
std::string detect_row_format(const OrderedJson& object, const std::string& where,
                              const Columns& columns = {});
// UsageError naming --columns if no format, or not the one called `format` ("auto": any), reads all
// that they name.
void check_columns(const Columns& columns, const std::string& format);
// The pairs whose keys a row of the format can't be without.
std::vector<Columns::Pair> required_columns(const Columns& columns, const std::string& format);

// What a row says, in whichever format it was written.
struct RowContent {
  std::string prompt, completion;    // plain text: the completion is trained, or
  std::optional<ChatRow> chat;       // turns for a chat template
  std::vector<std::string> ignored;  // keys of mere records
};

// Which keys that a format does not use are mere records.
enum class MereRecords {
  Known,         // those known as such (text/row_keys.h)
  OtherFormats,  // also those that identify other formats: the user named this one
  AllButContext  // all but those of a system turn and of tools: the user named what counts
};

// Reads a row. InputError naming `where` and the key for what is missing, wrong, or would be
// dropped.
RowContent read_row(const OrderedJson& object, const std::string& format, MereRecords records,
                    const std::string& where);

}  // namespace lk
