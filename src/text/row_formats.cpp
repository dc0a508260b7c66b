#include "text/row_formats.h"

#include <algorithm>

#include "io/printable.h"
#include "tensor/error.h"
#include "text/row_keys.h"

namespace lk {

namespace {

// A format and the keys that identify it, with their other names. The more telling formats come
// first: Alpaca's own file also has a "text" column.
struct Format {
  const char* name;
  std::vector<std::vector<const char*>> keys;
};
const std::vector<Format>& formats() {
  static const std::vector<Format> all = {{"messages", {{"messages"}}},
                                          {"sharegpt", {{"conversations", "conversation"}}},
                                          {"prompt-completion", {{"prompt"}, {"completion"}}},
                                          {"alpaca", {{"instruction"}, {"output", "response"}}},
                                          {"text", {{"text"}}}};
  return all;
}

void put_system(RowKeys& keys, std::vector<Turn>& turns, const std::string& where) {
  const std::string system = keys.text_or_nothing({"system", "system_prompt"});
  if (system.empty()) return;
  if (turns.front().message.role != "system")
    turns.insert(turns.begin(), {{"system", system}, false});
  else if (turns.front().message.content != system)
    throw InputError(where + ": system: the messages begin with another system turn");
}

std::shared_ptr<const OrderedJson> tools_of(RowKeys& keys, const std::string& where) {
  const OrderedJson* tools = keys.take("tools");
  const OrderedJson* functions = keys.take("functions");  // OpenAI's older name
  if (tools != nullptr && functions != nullptr)
    throw InputError(where + ": tools and functions: two names for one thing");
  if (functions != nullptr) return read_tools(*functions, where + ": functions");
  return tools == nullptr ? nullptr : read_tools(*tools, where + ": tools");
}

void read_plain(RowKeys& keys, RowContent& row) {
  row.prompt = keys.text("prompt");
  row.completion = keys.text("completion");
}

// TRL's prompt and completion as lists of messages: the prompt's turns are not trained.
void read_conversational(RowKeys& keys, const OrderedJson& prompt, const std::string& where,
                         RowContent& row) {
  const OrderedJson* completion = keys.take("completion");
  if (completion == nullptr || !completion->is_array())
    throw InputError(where + ": completion: a list of messages is expected, as prompt is one");
  ChatRow chat;
  chat.turns = read_turns(prompt, "prompt", where, row.ignored);
  for (std::size_t i = 0; i < chat.turns.size(); ++i) {
    if (const auto weight = prompt[i].find("weight"); weight != prompt[i].end() && *weight == 1)
      throw InputError(
          concat(where, ": prompt[", i, "]: weight: 1, but only the completion is ", "trained"));
    chat.turns[i].trained = false;
  }
  for (Turn& turn : read_turns(*completion, "completion", where, row.ignored))
    chat.turns.push_back(std::move(turn));
  chat.tools = tools_of(keys, where);
  put_system(keys, chat.turns, where);
  row.chat = std::move(chat);
}

void read_alpaca(RowKeys& keys, RowContent& row) {
  std::string instruction = keys.text("instruction");
  const std::string input = keys.text_or_nothing({"input", "context"});
  if (!input.empty()) instruction += "\n" + input;
  const std::string system = keys.text_or_nothing({"system", "system_prompt"});
  ChatRow chat;
  if (!system.empty()) chat.turns.push_back({{"system", system}, false});
  chat.turns.push_back({{"user", instruction}, false});
  chat.turns.push_back({{"assistant", keys.text_of({"output", "response"})}, true});
  keys.ignore("text", row.ignored);  // in Alpaca's own file: the row in a template of its own
  row.chat = std::move(chat);
}

void read_chat(RowKeys& keys, const std::vector<const char*>& names, const std::string& where,
               RowContent& row) {
  const auto there = std::find_if(names.begin(), names.end(), [&](auto n) { return keys.has(n); });
  const char* name = there == names.end() ? names.front() : *there;
  const OrderedJson* list = keys.take(name);
  if (list == nullptr) throw InputError(concat(where, ": ", name, ": missing"));
  ChatRow chat;
  chat.turns = read_turns(*list, name, where, row.ignored);
  chat.tools = tools_of(keys, where);
  put_system(keys, chat.turns, where);
  // Some files repeat the question beside the messages.
  if (keys.has("prompt"))
    for (const Turn& turn : chat.turns)
      if (keys.at("prompt") == turn.message.content) keys.ignore("prompt", row.ignored);
  row.chat = std::move(chat);
}

}  // namespace

std::string row_format_names() {
  std::string names;
  for (const Format& format : formats())
    names += std::string(names.empty() ? "" : ", ") + format.name;
  return names;
}

bool is_row_format(const std::string& name) {
  return std::any_of(formats().begin(), formats().end(),
                     [&](const Format& format) { return name == format.name; });
}

std::string detect_row_format(const OrderedJson& object, const std::string& where) {
  auto has_any = [&](const std::vector<const char*>& names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const char* name) { return object.contains(name); });
  };
  for (const Format& format : formats())
    if (std::all_of(format.keys.begin(), format.keys.end(), has_any)) return format.name;
  std::string keys;
  for (const auto& [key, value] : object.items()) {
    const std::string quoted = printable(key);
    keys += (keys.empty() ? "" : ", ") + (quoted.size() == key.size() + 2 ? key : quoted);
  }
  throw InputError(where + ": no row format has the keys {" + keys +
                   "}; known are text; prompt, completion; instruction, input or context, output "
                   "or response; messages; conversations");
}

RowContent read_row(const OrderedJson& object, const std::string& format, bool named,
                    const std::string& where) {
  RowContent row;
  RowKeys keys(object, where);
  if (format == "text") {
    row.completion = keys.text("text");
  } else if (format == "prompt-completion") {
    const OrderedJson* prompt = keys.take("prompt");
    if (prompt != nullptr && prompt->is_array())
      read_conversational(keys, *prompt, where, row);
    else
      read_plain(keys, row);
  } else if (format == "alpaca") {
    read_alpaca(keys, row);
  } else {
    const Format& chat = format == "sharegpt" ? formats()[1] : formats()[0];
    read_chat(keys, chat.keys.front(), where, row);
  }
  if (named)
    for (const Format& other : formats())
      for (const auto& names : other.keys)
        for (const char* name : names) keys.ignore(name, row.ignored);
  keys.finish("format " + format, row.ignored);
  return row;
}

}  // namespace lk
