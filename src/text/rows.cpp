#include "text/rows.h"

#include <algorithm>

#include "tensor/error.h"
#include "text/dataset.h"

namespace lk {

Row make_row(const Tokenizer& tokenizer, const std::string& prompt, const std::string& completion,
             bool with_eos) {
  Row row;
  Tokenizer::Encoding e = tokenizer.encode_with_offsets(prompt + completion);
  row.lost_bytes = e.lost_bytes;
  row.ids = std::move(e.ids);
  if (with_eos) {
    if (tokenizer.eos() < 0)
      throw InputError("the row must end in the end-of-text token, but the model names none");
    row.ids.push_back(tokenizer.eos());
  }
  row.supervised.assign(row.ids.size(), 1);
  const std::size_t given = std::min(tokenizer.encode(prompt).size(), row.ids.size());
  std::fill_n(row.supervised.begin(), given, std::uint8_t{0});
  return row;
}

RowBuilder::RowBuilder(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
                       const std::string& format)
    : tokenizer_(tokenizer),
      template_name_(template_name),
      format_(format),
      named_(format != "auto") {
  if (named_ && !is_row_format(format))
    throw UsageError(concat("--format ", format, ": not auto, ", row_format_names(), " or txt"));
}

RowBuilder::Built RowBuilder::build(const OrderedJson& object, const std::string& where) {
  if (format_ == "auto") format_ = detect_row_format(object, where);
  RowContent content = read_row(object, format_, named_, where);
  Built built;
  built.ignored = std::move(content.ignored);
  try {
    built.row = content.chat ? chat(std::move(*content.chat), built.fitted)
                             : make_row(tokenizer_, content.prompt, content.completion);
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
  return built;
}

void RowBuilder::choose_template() {
  template_ = ChatTemplate::choose(tokenizer_, template_name_.value_or(""));
  support_ = find_tool_support(*template_);
}

// Tokens that begin inside a trained turn are trained. A token may begin before a turn's content
// and reach into it (a newline of the template and one of the content, say): it counts as the
// template's.
Row RowBuilder::chat(ChatRow said, std::vector<std::string>& fitted) {
  std::call_once(template_chosen_, [&] { choose_template(); });
  fitted = fit_to_template(said, support_);
  std::vector<Message> messages;
  std::vector<bool> trained;  // one for each assistant turn
  for (const Turn& turn : said.turns) {
    messages.push_back(turn.message);
    if (turn.message.role == "assistant") trained.push_back(turn.trained);
  }
  const RenderedChat chat = template_->render(messages, false, said.tools.get());
  require_written(said, chat.text, template_->name());
  Tokenizer::Encoding e = tokenizer_.encode_with_offsets(chat.text, chat.content);
  Row row;
  row.lost_bytes = e.lost_bytes;
  row.ids = std::move(e.ids);
  row.supervised.assign(row.ids.size(), 0);
  std::size_t turn = 0;  // the first turn that ends after token i begins
  for (std::size_t i = 0; i < row.ids.size(); ++i) {
    while (turn < chat.assistant.size() && chat.assistant[turn].second <= e.begins[i]) ++turn;
    if (turn == chat.assistant.size()) break;
    row.supervised[i] = trained[turn] && e.begins[i] >= chat.assistant[turn].first;
  }
  return row;
}

}  // namespace lk
