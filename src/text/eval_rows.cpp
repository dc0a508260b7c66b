#include "text/eval_rows.h"

#include <algorithm>
#include <map>

#include "tensor/error.h"
#include "text/data_file.h"
#include "text/fitted_template.h"
#include "text/row_formats.h"
#include "text/row_keys.h"

namespace lk {
namespace {

std::vector<std::string> strings(const Json& row, const std::string& key, std::size_t least,
                                 const std::string& where) {
  const Json& list = json_at(row, key, where);
  std::vector<std::string> out;
  if (list.is_array())
    for (const Json& text : list)
      if (text.is_string()) out.push_back(text.get<std::string>());
  if (!list.is_array() || out.size() != list.size() || out.size() < least)
    throw InputError(concat(where, ": ", key, ": expected an array of at least ", least,
                            least == 1 ? " text" : " texts"));
  return out;
}

std::size_t answer_index(const Json& row, const std::vector<std::string>& choices,
                         const std::string& where) {
  const Json& answer = json_at(row, "answer", where);
  if (!answer.is_string())
    return static_cast<std::size_t>(json_int(row, "answer", 0, std::ssize(choices) - 1, where));
  const auto found = std::find(choices.begin(), choices.end(), answer.get<std::string>());
  if (found == choices.end())
    throw InputError(where + ": answer: is none of the choices, letter for letter");
  return static_cast<std::size_t>(found - choices.begin());
}

std::int64_t code_points(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

void require_fits(std::size_t tokens, const EvalRowOptions& options, const std::string& what) {
  if (static_cast<std::int64_t>(tokens) > options.seq_len)
    throw InputError(concat(what, " has ", tokens, " tokens, `seq_len` is ", options.seq_len));
}

// Adds the place in the file to an error about the text itself.
template <class F>
auto at(const std::string& where, const F& f) {
  try {
    return f();
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
}

// As refuse_unused_keys(); where the user names the columns that count, the others are records.
void refuse_unused(const OrderedJson& row, const Columns& columns,
                   std::initializer_list<const char*> used, const std::string& user,
                   const std::string& where) {
  if (columns.empty()) refuse_unused_keys(row, used, user, where);
}

}  // namespace

EvalKind detect_eval_kind(const ByteSource& data, const Columns& columns) {
  if (is_text_name(data.name())) return EvalKind::Loss;
  EvalKind kind = EvalKind::Loss;
  auto first = [&](RawRow&& raw) {
    try {
      std::vector<std::string> ignored;
      const OrderedJson row = columns.rename(raw.parse(), ignored);
      if (row.contains("choices"))
        kind = EvalKind::Choices;
      else if (row.contains("references") && find_row_format(row).empty())
        kind = EvalKind::Generation;
      return false;
    } catch (const InputError&) {
      return true;  // whoever reads the rows says what is wrong, or skips it
    }
  };
  for_each_raw_row(data, first, columns.theirs());
  return kind;
}

std::vector<ChoiceRow> load_choices(const ByteSource& data, const Tokenizer& tokenizer,
                                    const EvalRowOptions& options) {
  std::vector<ChoiceRow> rows;
  if (options.system) throw UsageError("`system`: rows with choices are no chats");
  if (options.chat_template) throw UsageError("`template`: rows with choices are no chats");
  for_each_renamed_row(
      data, options.columns, [&](const OrderedJson& object, const std::string& where) {
        refuse_unused(object, options.columns, {"prompt", "choices", "answer"},
                      "a row with choices", where);
        const Json json(object);
        const std::string prompt = json_string(json, "prompt", where);
        const std::vector<std::string> choices = strings(json, "choices", 2, where);
        ChoiceRow row;
        row.answer = answer_index(json, choices, where);
        for (std::size_t i = 0; i < choices.size(); ++i) {
          const std::string here = concat(where, ": choices[", i, "]");
          if (std::count(choices.begin(), choices.end(), choices[i]) > 1)
            throw InputError(here + ": appears twice");
          row.choices.push_back(
              at(here, [&] { return make_row(tokenizer, prompt, choices[i], false); }));
          row.characters.push_back(code_points(choices[i]));
          if (row.choices.back().n_supervised() == 0)
            throw InputError(here + ": has no token of its own behind the prompt");
          require_fits(row.choices.back().ids.size(), options, here + ": with its prompt it");
        }
        rows.push_back(std::move(row));
        return std::ssize(rows) != options.max_rows;
      });
  if (rows.empty()) throw InputError(data.name() + ": no rows");
  return rows;
}

namespace {

// Reads the rows of one file that answers are scored on.
class ReferenceReader {
 public:
  ReferenceReader(const Tokenizer& tokenizer, const EvalRowOptions& options)
      : tokenizer_(tokenizer), options_(options) {
    check_system_text(options.system);
  }

  ReferenceRow read(const OrderedJson& row, const std::string& where) {
    const std::string format = find_row_format(row, options_.columns);
    const bool plain = row.contains("prompt") && row["prompt"].is_string();
    // Some chats repeat the question beside their turns.
    if (plain && (format.empty() || format == "prompt-completion" || format == "text"))
      return read_plain(row, where);
    if (row.contains("prompt") && format.empty())
      return read_chat(prompt_alone(row, where), row, where);
    if (format.empty())
      detect_row_format(row, where, options_.columns);  // says what is there, and what is known
    if (format == "text")
      throw InputError(where + ": text: a row of plain text has no prompt to answer");
    const MereRecords records =
        options_.columns.empty() ? MereRecords::Known : MereRecords::AllButContext;
    return read_chat(std::move(*read_row(row, format, records, where).chat), row, where);
  }

 private:
  ReferenceRow read_plain(const OrderedJson& object, const std::string& where) const {
    refuse_unused(object, options_.columns, {"prompt", "references", "completion"},
                  "a row with references", where);
    const Json json(object);
    if (options_.system)
      throw UsageError(concat("`system`: ", where, " is no chat but a plain prompt"));
    ReferenceRow row;
    row.prompt = json_string(json, "prompt", where);
    if (!json.contains("references") && json.contains("completion"))
      row.references = {json_string(json, "completion", where)};
    else
      row.references = strings(json, "references", 1, where);
    row.ids = at(where + ": prompt", [&] { return tokenizer_.encode_prompt(row.prompt).ids; });
    return row;
  }

  // A list of messages as the prompt, with references beside it and no completion.
  ChatRow prompt_alone(const OrderedJson& row, const std::string& where) const {
    refuse_unused(row, options_.columns, {"prompt", "references"},
                  "a row of messages and references", where);
    std::vector<std::string> ignored;
    return {read_turns(row["prompt"], "prompt", where, ignored), nullptr};
  }

  ReferenceRow read_chat(ChatRow chat, const OrderedJson& json, const std::string& where) {
    if (!template_) template_.emplace(tokenizer_, options_.chat_template, options_.system);
    ReferenceRow row;
    if (chat.turns.back().message.role == "assistant") {
      const Message& last = chat.turns.back().message;
      if (last.more && last.more->contains("tool_calls"))
        throw InputError(where + ": the last turn calls tools: only texts are compared");
      row.references = {last.content};
      chat.turns.pop_back();
    }
    if (json.contains("references"))
      row.references = strings(Json(json), "references", 1, where);
    else if (row.references.empty())
      throw InputError(where +
                       ": the chat does not end with a turn of the assistant to compare "
                       "with, and has no references");
    if (chat.turns.empty()) throw InputError(where + ": no turn stands before the assistant's");
    return at(where, [&] {
      template_->fit(chat);
      std::vector<Message> messages;
      for (const Turn& turn : chat.turns) messages.push_back(turn.message);
      const RenderedChat prompt = (*template_)->render(messages, true, chat.tools.get());
      template_->require_written(chat, prompt.text);
      row.prompt = prompt.text;
      row.ids = encode_chat(tokenizer_, prompt).ids;
      row.is_chat = true;
      return std::move(row);
    });
  }

  const Tokenizer& tokenizer_;
  const EvalRowOptions& options_;
  std::optional<FittedTemplate> template_;  // chosen by the first row that needs it
};

}  // namespace

std::vector<ReferenceRow> load_references(const ByteSource& data, const Tokenizer& tokenizer,
                                          const EvalRowOptions& options, std::int64_t max_new) {
  ReferenceReader reader(tokenizer, options);
  std::vector<ReferenceRow> rows;
  std::map<std::string, std::size_t> places;  // in `rows`, by prompt
  std::int64_t n_read = 0;
  for_each_renamed_row(
      data, options.columns, [&](const OrderedJson& json, const std::string& where) {
        ReferenceRow row = reader.read(json, where);
        const bool more = ++n_read != options.max_rows;
        const auto [place, is_new] = places.emplace(row.prompt, rows.size());
        if (!is_new) {  // one prompt, another reference
          std::vector<std::string>& all = rows[place->second].references;
          all.insert(all.end(), row.references.begin(), row.references.end());
          return more;
        }
        if (row.ids.empty()) throw InputError(where + ": prompt: has no tokens");
        require_fits(row.ids.size() + static_cast<std::size_t>(max_new), options,
                     concat(where, ": prompt: with `max_tokens` ", max_new, " it"));
        rows.push_back(std::move(row));
        return more;
      });
  if (rows.empty()) throw InputError(data.name() + ": no rows");
  return rows;
}

}  // namespace lk
