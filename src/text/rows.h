// RowBuilder: makes a Row of each JSON object of a data file.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/chat_template.h"
#include "text/row.h"
#include "text/row_formats.h"
#include "text/tokenizer.h"
#include "text/tool_turns.h"

namespace lk {

// Plain rows are encode(prompt + completion) + [eos], trained from position len(encode(prompt)) on.
// Chats go through the model's template; the assistant's turns of weight 1 are trained, with their
// end token.
class RowBuilder {
 public:
  // `format`: a row format's name, or "auto": found from the first row. UsageError for any other.
  RowBuilder(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
             const std::string& format);

  struct Built {
    Row row;
    std::vector<std::string> ignored;  // keys of mere records
    std::vector<std::string> fitted;   // what the template has no place for, and how it is written
  };
  // Makes a row of `object`. InputError naming `where` and the key. The first row settles the
  // format: after it, build() may be called by many threads at a time.
  Built build(const OrderedJson& object, const std::string& where);
  // "auto" until a row has settled it.
  const std::string& format() const { return format_; }

 private:
  Row chat(ChatRow said, std::vector<std::string>& fitted);
  void choose_template();

  const Tokenizer& tokenizer_;
  std::optional<std::string> template_name_;
  std::string format_;
  bool named_;  // the user named the format
  std::once_flag template_chosen_;
  std::optional<ChatTemplate> template_;  // chosen by the first row that needs it
  ToolSupport support_;                   // of the template
};

}  // namespace lk
