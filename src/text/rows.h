// RowBuilder: makes a Row of each JSON object of a data file.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/dataset.h"
#include "text/fitted_template.h"
#include "text/row.h"
#include "text/row_formats.h"
#include "text/tokenizer.h"
#include "text/training_chat.h"

namespace lk {

// Plain rows are made by make_row(), trained from the completion on.
// Chats go through the model's template; the assistant's turns of weight 1 are trained, with their
// end token, in as many rows as TrainOn says.
class RowBuilder {
 public:
  // Takes format, train_on, columns and system of `options`. A format of "auto" is found from the
  // first row. UsageError for a format that is none, for columns that it does not read, and in
  // build() for a TrainOn or a system turn where the rows are no chats.
  RowBuilder(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
             const DatasetOptions& options);

  struct Built {
    std::vector<Row> rows;             // one, but of a chat that is taken apart
    bool one_a_turn = false;           // a chat taken apart: each row trains one turn
    std::vector<std::string> ignored;  // keys of mere records
    std::vector<std::string> fitted;   // what the template has no place for, and how it is written
    Thoughts thoughts = {};            // of a chat's trained turns
    bool is_chat = false;
    std::optional<std::string> system = {};  // the system turn that a chat begins with
    bool own_system = false;    // a chat whose own system turn stays, not options.system
    std::vector<bool> columns;  // of each pair of options.columns: the row has its key
  };
  // Makes rows of `object`. InputError naming `where` and the key. The first row settles the
  // format: after it, build() may be called by many threads at a time.
  Built build(const OrderedJson& object, const std::string& where);
  // "auto" until a row has settled it.
  const std::string& format() const { return format_; }

 private:
  RowContent read(const OrderedJson& object, const std::string& where, Built& built);
  void chat(ChatRow said, Built& built);

  const Tokenizer& tokenizer_;
  std::optional<std::string> template_name_;
  std::string format_;
  bool named_;  // the user named the format
  TrainOn train_on_;
  Columns columns_;
  std::optional<std::string> system_;
  std::once_flag template_chosen_;
  std::optional<FittedTemplate> template_;  // chosen by the first row that needs it
};

// The rows of one chat, through the template: all of the assistant's turns are trained, with their
// end token, in as many rows as `train_on` says. InputError if the template refuses the chat or it
// has no turn to train.
std::vector<Row> make_chat_rows(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                const std::vector<Message>& messages,
                                TrainOn train_on = TrainOn::Assistant);

}  // namespace lk
