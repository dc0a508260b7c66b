#include "text/row_formats.h"

#include <algorithm>

#include "tensor/error.h"
#include "text/row_keys.h"

namespace lk {

namespace {

// What stands beside a chat's turns.
const std::vector<const char*> kContext = {"system", "system_prompt", "tools", "functions"};

// A format, the keys that identify it, with their other names, and those it reads besides. The more
// telling formats come first: Alpaca's own file also has a "text" column.
struct Format {
  const char* name;
  std::vector<std::vector<const char*>> keys;
  std::vector<const char*> more;

  bool needs(const std::string& key) const {
    return std::any_of(keys.begin(), keys.end(), [&](const auto& names) {
      return std::find(names.begin(), names.end(), key) != names.end();
    });
  }
  bool reads(const std::string& key) const {
    return needs(key) || std::find(more.begin(), more.end(), key) != more.end();
  }
};
const std::vector<Format>& formats() {
  static const std::vector<Format> all = {
      {"messages", {{"messages"}}, kContext},
      {"sharegpt", {{"conversations", "conversation"}}, kContext},
      {"prompt-completion", {{"prompt"}, {"completion"}}, kContext},
      {"alpaca",
       {{"instruction"}, {"output", "response"}},
       {"input", "context", "system", "system_prompt"}},
      {"user-assistant", {{"user"}, {"assistant"}}, kContext},
      {"text", {{"text"}}, {}}};
  return all;
}

const Format& format_called(const std::string& name) {
  return *std::find_if(formats().begin(), formats().end(),
                       [&](const Format& format) { return name == format.name; });
}

// Keys that only `evaluate` reads; training takes "references" for a mere record.
constexpr const char* kEvaluationKeys[] = {"references", "choices", "answer"};

bool reads_all(const Format& format, const Columns& columns) {
  return std::all_of(columns.pairs().begin(), columns.pairs().end(), [&](const auto& pair) {
    return pair.ours == "references" || format.reads(pair.ours);
  });
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

void read_user_assistant(RowKeys& keys, const std::string& where, RowContent& row) {
  ChatRow chat;
  chat.turns.push_back({{"user", keys.text("user")}, false});
  chat.turns.push_back({{"assistant", keys.text("assistant")}, true});
  chat.tools = tools_of(keys, where);
  put_system(keys, chat.turns, where);
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

std::vector<std::string> row_format_keys() {
  std::vector<std::string> all;
  auto add = [&](const char* key) {
    if (std::find(all.begin(), all.end(), key) == all.end()) all.emplace_back(key);
  };
  for (const Format& format : formats()) {
    for (const auto& names : format.keys) std::for_each(names.begin(), names.end(), add);
    std::for_each(format.more.begin(), format.more.end(), add);
  }
  std::for_each(std::begin(kEvaluationKeys), std::end(kEvaluationKeys), add);
  return all;
}

std::string find_row_format(const OrderedJson& object, const Columns& columns) {
  auto has_any = [&](const std::vector<const char*>& names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const char* name) { return object.contains(name); });
  };
  for (const Format& format : formats())
    if (reads_all(format, columns) && std::all_of(format.keys.begin(), format.keys.end(), has_any))
      return format.name;
  return "";
}

std::string detect_row_format(const OrderedJson& object, const std::string& where,
                              const Columns& columns) {
  std::string found = find_row_format(object, columns);
  if (!found.empty()) return found;
  throw InputError(concat(
      where, ": no row format has the keys ", listed_keys(object),
      "; known are text; prompt, completion; instruction, input or context, output or response; "
      "messages; conversations; user, assistant. ",
      columns.empty() ? "`columns` says which of yours stand for them"
                      : "`columns` may name more of yours",
      ": `columns` prompt=KEY,completion=KEY (plain text) or user=KEY,assistant=KEY (a chat)"));
}

void check_columns(const Columns& columns, const std::string& format) {
  const bool any = format == "auto";
  for (const Format& one : formats())
    if ((any || format == one.name) && reads_all(one, columns)) return;
  std::string ours;
  for (const Columns::Pair& pair : columns.pairs()) ours += (ours.empty() ? "" : ", ") + pair.ours;
  throw UsageError(concat("`columns` ", columns.text(), ": ",
                          any ? "no row format reads" : "the format " + format + " does not read",
                          " all of ", ours));
}

std::vector<Columns::Pair> required_columns(const Columns& columns, const std::string& format) {
  std::vector<Columns::Pair> required;
  for (const Columns::Pair& pair : columns.pairs())
    if (format_called(format).needs(pair.ours)) required.push_back(pair);
  return required;
}

RowContent read_row(const OrderedJson& object, const std::string& format, MereRecords records,
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
  } else if (format == "user-assistant") {
    read_user_assistant(keys, where, row);
  } else {
    read_chat(keys, format_called(format).keys.front(), where, row);
  }
  if (records == MereRecords::OtherFormats)
    for (const Format& other : formats())
      for (const auto& names : other.keys)
        for (const char* name : names) keys.ignore(name, row.ignored);
  if (records == MereRecords::AllButContext)
    for (const auto& [key, value] : object.items())
      if (std::find(kContext.begin(), kContext.end(), key) == kContext.end())
        keys.ignore(key.c_str(), row.ignored);
  keys.finish("format " + format, row.ignored);
  return row;
}

}  // namespace lk
