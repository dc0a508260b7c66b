#include "text/rows.h"

#include <algorithm>

#include "tensor/error.h"

namespace lk {

namespace {

// A format and the keys that identify it. The more telling formats come first: Alpaca's own file
// also has a "text" column.
struct Format {
  const char* name;
  std::vector<const char*> keys;
};
const std::vector<Format>& formats() {
  static const std::vector<Format> all = {{"messages", {"messages"}},
                                          {"prompt-completion", {"prompt", "completion"}},
                                          {"alpaca", {"instruction", "output"}},
                                          {"text", {"text"}}};
  return all;
}

std::string detect(const Json& object, const std::string& where) {
  for (const Format& format : formats())
    if (std::all_of(format.keys.begin(), format.keys.end(),
                    [&](const char* key) { return object.contains(key); }))
      return format.name;
  std::string keys;
  for (const auto& [key, value] : object.items()) keys += (keys.empty() ? "" : ", ") + key;
  throw InputError(where + ": no row format has the keys {" + keys +
                   "}; known are text; prompt, completion; instruction, input, output; messages");
}

std::string optional_text(const Json& object, const char* key, const std::string& where) {
  if (!object.contains(key) || object.at(key).is_null()) return "";
  return json_string(object, key, where);
}

}  // namespace

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
    : tokenizer_(tokenizer), template_name_(template_name), format_(format) {
  auto named = [&](const Format& f) { return format == f.name; };
  if (format != "auto" && std::none_of(formats().begin(), formats().end(), named))
    throw UsageError("--format " + format +
                     ": not auto, text, prompt-completion, alpaca, messages or txt");
}

Row RowBuilder::build(const Json& object, const std::string& where) {
  if (format_ == "auto") format_ = detect(object, where);
  if (format_ == "text") return text(object, where);
  if (format_ == "prompt-completion") return prompt_completion(object, where);
  if (format_ == "alpaca") return alpaca(object, where);
  return messages(object, where);
}

Row RowBuilder::text(const Json& object, const std::string& where) {
  return completion("", json_string(object, "text", where), where);
}

Row RowBuilder::prompt_completion(const Json& object, const std::string& where) {
  return completion(json_string(object, "prompt", where), json_string(object, "completion", where),
                    where);
}

Row RowBuilder::completion(const std::string& prompt, const std::string& text,
                           const std::string& where) {
  try {
    return make_row(tokenizer_, prompt, text);
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
}

Row RowBuilder::alpaca(const Json& object, const std::string& where) {
  const std::string input = optional_text(object, "input", where);
  const std::string system = optional_text(object, "system", where);
  if (object.contains("history") && object.at("history").is_array() &&
      !object.at("history").empty())
    throw InputError(where + ": history: not read; write the conversation as messages");
  std::string instruction = json_string(object, "instruction", where);
  if (!input.empty()) instruction += "\n" + input;
  std::vector<Message> turns;
  if (!system.empty()) turns.push_back({"system", system});
  turns.push_back({"user", instruction});
  turns.push_back({"assistant", json_string(object, "output", where)});
  return chat(turns, {true}, where);
}

Row RowBuilder::messages(const Json& object, const std::string& where) {
  const Json& list = json_at(object, "messages", where);
  if (!list.is_array() || list.empty())
    throw InputError(where + ": messages: not an array of at least one message");
  std::vector<Message> turns;
  std::vector<bool> trained;  // one for each assistant turn
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string at = concat(where, ": messages[", i, "]");
    if (!list[i].is_object()) throw InputError(at + ": not an object");
    // Dropping such keys would train on something that the file does not say.
    for (const char* key : {"tool_calls", "function_call"})
      if (list[i].contains(key) && !list[i].at(key).is_null() && !list[i].at(key).empty())
        throw InputError(at + ": " + key + ": not supported");
    turns.push_back({json_string(list[i], "role", at), json_string(list[i], "content", at)});
    if (turns.back().role == "assistant")
      trained.push_back(json_int_or(list[i], "weight", 1, 0, 1, at) == 1);
  }
  return chat(turns, trained, where);
}

// Tokens that begin inside a trained turn are trained. A token may begin before a turn's content
// and reach into it (a newline of the template and one of the content, say): it counts as the
// template's.
Row RowBuilder::chat(const std::vector<Message>& turns, const std::vector<bool>& trained,
                     const std::string& where) {
  if (!template_) template_ = ChatTemplate::choose(tokenizer_, template_name_.value_or(""));
  RenderedChat chat;
  try {
    chat = template_->render(turns, false);
  } catch (const InputError& e) {
    throw InputError(where + ": " + e.what());
  }
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
