#include "text/rows.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {

Row make_row(const Tokenizer& tokenizer, const std::string& prompt, const std::string& completion,
             bool with_eos) {
  Row row;
  Tokenizer::Encoding e = tokenizer.encode_prompt(prompt + completion);
  row.lost_bytes = e.lost_bytes;
  row.ids = std::move(e.ids);
  const std::vector<std::int32_t> asked =
      prompt.empty() ? std::vector<std::int32_t>() : tokenizer.encode_prompt(prompt).ids;
  const std::size_t given = std::min(asked.size(), row.ids.size());
  row.shares_token =
      !completion.empty() &&
      (given < asked.size() || !std::equal(asked.begin(), asked.end(), row.ids.begin()));
  if (with_eos) {
    if (tokenizer.eos() < 0)
      throw InputError("the row must end in the end-of-text token, but the model names none");
    std::vector<std::int32_t> end = tokenizer.after_text();
    if (end.empty() || end.back() != tokenizer.eos()) end.push_back(tokenizer.eos());
    for (const std::int32_t id : end) {
      tokenizer.require_embedding(id);
      // Many files write the end token behind each text.
      if (row.ids.size() == given || row.ids.back() != id) row.ids.push_back(id);
    }
  }
  row.supervised.assign(row.ids.size(), 1);
  std::fill_n(row.supervised.begin(), given, std::uint8_t{0});
  return row;
}

RowBuilder::RowBuilder(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
                       const DatasetOptions& options)
    : tokenizer_(tokenizer),
      template_name_(template_name),
      format_(options.format),
      named_(format_ != "auto"),
      train_on_(options.train_on),
      columns_(options.columns),
      system_(options.system) {
  if (named_ && !is_row_format(format_))
    throw UsageError(concat("`format` ", format_, ": not auto, ", row_format_names(), " or txt"));
  check_columns(columns_, format_);
  check_system_text(system_);
}

RowContent RowBuilder::read(const OrderedJson& object, const std::string& where, Built& built) {
  std::vector<std::string> displaced;
  const OrderedJson row = columns_.rename(object, displaced);
  for (const Columns::Pair& pair : columns_.pairs())
    built.columns.push_back(object.contains(pair.theirs));
  auto refuse_missing = [&](const std::vector<Columns::Pair>& pairs) {
    for (const Columns::Pair& pair : pairs)
      if (!object.contains(pair.theirs))
        throw InputError(concat(where, ": ", columns_.missing(pair, object)));
  };
  if (format_ == "auto") {
    if (find_row_format(row, columns_).empty()) refuse_missing(columns_.pairs());
    format_ = detect_row_format(row, where, columns_);
  }
  if (!columns_.empty()) refuse_missing(required_columns(columns_, format_));
  const MereRecords records = !columns_.empty() ? MereRecords::AllButContext
                              : named_          ? MereRecords::OtherFormats
                                                : MereRecords::Known;
  RowContent content = read_row(row, format_, records, where);
  content.ignored.insert(content.ignored.end(), displaced.begin(), displaced.end());
  return content;
}

RowBuilder::Built RowBuilder::build(const OrderedJson& object, const std::string& where) {
  Built built;
  RowContent content = read(object, where, built);
  built.ignored = std::move(content.ignored);
  if (!content.chat && train_on_ != TrainOn::Assistant)
    throw UsageError(concat("`train_on` ", train_on_name(train_on_), ": the rows of ", where,
                            " are no chats, which it is for"));
  if (!content.chat && system_)
    throw UsageError(concat("`system`: ", where, " is no chat but plain text (format ", format_,
                            "), which has no system turn; `columns` user=KEY,assistant=KEY makes "
                            "chats of two columns"));
  try {
    if (content.chat)
      chat(std::move(*content.chat), built);
    else
      built.rows = {make_row(tokenizer_, content.prompt, content.completion)};
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
  return built;
}

namespace {

// Tokens that begin inside a trained turn are trained. A token may begin before a turn's content
// and reach into it (a newline of the template and one of the content, say): it counts as the
// template's.
Row chat_row(const Tokenizer& tokenizer, const RenderedChat& chat) {
  Tokenizer::Encoding e = encode_chat(tokenizer, chat);
  Row row;
  row.lost_bytes = e.lost_bytes;
  row.ids = std::move(e.ids);
  row.supervised.assign(row.ids.size(), 0);
  std::size_t turn = 0;  // the first turn that ends after token i begins
  for (std::size_t i = 0; i < row.ids.size(); ++i) {
    while (turn < chat.assistant.size() && chat.assistant[turn].second <= e.begins[i]) ++turn;
    if (turn == chat.assistant.size()) break;
    row.supervised[i] = e.begins[i] >= chat.assistant[turn].first;
  }
  return row;
}

}  // namespace

void RowBuilder::chat(ChatRow said, Built& built) {
  std::call_once(template_chosen_, [&] { template_.emplace(tokenizer_, template_name_, system_); });
  FittedTemplate::Fitted fitted = template_->fit(said);
  built.fitted = std::move(fitted.written);
  built.own_system = fitted.own_system;
  std::vector<Message> messages;
  std::vector<bool> trained;
  for (const Turn& turn : said.turns) {
    messages.push_back(turn.message);
    trained.push_back(turn.trained);
  }
  built.is_chat = true;
  if (!messages.empty() && messages.front().role == "system")
    built.system = messages.front().content;
  const TrainingChat chat =
      render_for_training(**template_, messages, trained, train_on_, said.tools.get());
  // No trained token follows the turns behind the last answer, and no row has them where a chat is
  // taken apart.
  while (!said.turns.empty() && said.turns.back().message.role != "assistant")
    said.turns.pop_back();
  template_->require_written(said, chat.written);
  built.thoughts = find_thoughts(said, chat.written);
  built.one_a_turn = chat.one_a_turn;
  for (const RenderedChat& row : chat.rows) built.rows.push_back(chat_row(tokenizer_, row));
  if (built.rows.empty()) throw InputError("the row has no token to train on");
}

std::vector<Row> make_chat_rows(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                const std::vector<Message>& messages, TrainOn train_on) {
  std::vector<bool> trained;
  for (const Message& m : messages) trained.push_back(m.role == "assistant");
  const TrainingChat chat =
      render_for_training(chat_template, messages, trained, train_on, nullptr);
  std::vector<Row> rows;
  for (const RenderedChat& row : chat.rows) rows.push_back(chat_row(tokenizer, row));
  if (rows.empty()) throw InputError("the chat has no turn to train on");
  return rows;
}

}  // namespace lk
