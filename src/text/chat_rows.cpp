#include "text/chat_rows.h"

#include <algorithm>
#include <cmath>

#include "io/printable.h"
#include "tensor/error.h"
#include "text/row_keys.h"

namespace lk {

namespace {

// Names of the speakers in ShareGPT's files.
constexpr std::pair<const char*, const char*> kSpeakers[] = {
    {"human", "user"},          {"user", "user"},         {"gpt", "assistant"},
    {"assistant", "assistant"}, {"chatgpt", "assistant"}, {"bing", "assistant"},
    {"bard", "assistant"},      {"model", "assistant"},   {"system", "system"},
    {"tool", "tool"},           {"observation", "tool"},  {"function_response", "tool"},
};

constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool", "developer"};

// Keys of a message that only a template can write.
constexpr const char* kTemplateKeys[] = {"tool_call_id", "name", "reasoning_content", "reasoning",
                                         "thinking"};

void refuse_non_finite(const OrderedJson& json, const std::string& where) {
  if (json.is_number_float() && !std::isfinite(json.get<double>()))
    throw InputError(where + ": NaN or Infinity");
  if (json.is_structured())
    for (const auto& [key, value] : json.items()) refuse_non_finite(value, where);
}

// The array in `json`, which may be written as the JSON text of one.
OrderedJson array_of(const OrderedJson& json, const std::string& where) {
  OrderedJson list =
      json.is_string() ? parse_row_json(json.get_ref<const std::string&>(), where) : json;
  if (!list.is_array()) throw InputError(where + ": an array is expected");
  refuse_non_finite(list, where);
  return list;
}

// {"type":"function","function":{"name",...}} of a function with or without that frame.
OrderedJson framed(OrderedJson entry, const std::string& where) {
  if (!entry.is_object()) throw InputError(where + ": not an object");
  if (!entry.contains("function"))
    entry = OrderedJson{{"type", "function"}, {"function", std::move(entry)}};
  const OrderedJson& function = entry["function"];
  if (!function.is_object()) throw InputError(where + ": function: not an object");
  const auto name = function.find("name");
  if (name == function.end() || !name->is_string() || name->empty())
    throw InputError(where + ": name: missing, or no string");
  return entry;
}

// Refuses what no template would write of a call: its arguments under another name or in another
// place, say.
void refuse_unknown_members(const OrderedJson& call, const std::string& where) {
  refuse_unused_keys(call, {"function"}, "a tool call", where);
  refuse_unused_keys(call["function"], {"name", "arguments"}, "a tool call", where + ": function");
}

OrderedJson read_calls(const OrderedJson& calls, const std::string& where) {
  OrderedJson list = array_of(calls, where);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string at = concat(where, "[", i, "]");
    list[i] = framed(std::move(list[i]), at);
    refuse_unknown_members(list[i], at);
    OrderedJson& arguments = list[i]["function"]["arguments"];
    if (arguments.is_string()) {
      const std::string text = arguments.get<std::string>();
      arguments = text.empty() ? OrderedJson::object() : parse_row_json(text, at + ": arguments");
    }
    if (arguments.is_null()) arguments = OrderedJson::object();
    if (!arguments.is_object()) throw InputError(at + ": arguments: not an object");
    refuse_non_finite(arguments, at + ": arguments");
  }
  return list;
}

// The text of a content's parts, one behind the other.
std::string text_of_parts(const OrderedJson& parts, const std::string& where,
                          std::vector<std::string>& ignored) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string at = concat(where, "[", i, "]");
    RowKeys keys(parts[i], at);
    if (const std::string type = keys.text("type"); type != "text")
      throw InputError(concat(at, ": type ", printable(type), ": only text is read"));
    text += keys.text("text");
    keys.finish("a part of text", ignored);
  }
  return text;
}

bool is_trained(const OrderedJson* weight, const std::string& role, const std::string& where) {
  const bool answers = role == "assistant";
  if (weight == nullptr) return answers;
  if (!weight->is_number() || (*weight != 0 && *weight != 1))
    throw InputError(where + ": weight: 0, 1 or null is expected, not " + weight->dump());
  if (*weight == 1 && !answers)
    throw InputError(concat(where, ": weight: 1, but only the assistant's turns are trained"));
  return *weight == 1;
}

Turn read_openai(RowKeys& keys, const std::string& where, std::vector<std::string>& ignored) {
  Turn turn;
  Message& m = turn.message;
  m.role = keys.text("role");
  if (m.role == "function") m.role = "tool";
  if (std::find(std::begin(kRoles), std::end(kRoles), m.role) == std::end(kRoles))
    throw InputError(concat(where, ": role ", printable(m.role),
                            " is none of system, user, assistant, tool and developer"));
  OrderedJson more = OrderedJson::object();
  const OrderedJson* calls = keys.take("tool_calls");
  const OrderedJson* call = keys.take("function_call");
  const bool many = calls != nullptr && !calls->empty(), one = call != nullptr && !call->empty();
  if (many && one)
    throw InputError(where + ": tool_calls and function_call: two names for one thing");
  if (many)
    more["tool_calls"] = read_calls(*calls, where + ": tool_calls");
  else if (one)
    more["tool_calls"] = read_calls(OrderedJson::array({*call}), where + ": function_call");
  const bool acts = more.contains("tool_calls");
  if (acts && m.role != "assistant")
    throw InputError(where + ": tool_calls: in a turn that is not the assistant's");

  const OrderedJson* content = keys.take("content");
  if (content != nullptr && content->is_array()) {
    m.content = text_of_parts(*content, where + ": content", ignored);
    more["content"] = *content;
  } else if (content != nullptr || !acts) {
    m.content = keys.text("content");
  } else {
    more["content"] = nullptr;
  }

  for (const char* key : kTemplateKeys)
    if (keys.has(key))
      if (const std::string text = keys.text_or_nothing({key}); !text.empty()) more[key] = text;
  turn.trained = is_trained(keys.take("weight"), m.role, where);
  if (!more.empty()) m.more = std::make_shared<const OrderedJson>(std::move(more));
  return turn;
}

Turn read_sharegpt(RowKeys& keys, const std::string& where) {
  Turn turn;
  const std::string from = keys.text("from");
  const std::string value = keys.text("value");
  if (from == "function_call") {
    OrderedJson calls = parse_row_json(value, where + ": value");
    if (!calls.is_array()) calls = OrderedJson::array({std::move(calls)});
    OrderedJson more{{"tool_calls", read_calls(calls, where + ": value")}, {"content", nullptr}};
    turn.message = {"assistant", "", std::make_shared<const OrderedJson>(std::move(more))};
  } else {
    for (const auto& [name, role] : kSpeakers)
      if (from == name) turn.message = {role, value};
    if (turn.message.role.empty())
      throw InputError(concat(where, ": from ", printable(from),
                              ": not human, gpt, system, function_call or observation"));
  }
  turn.trained = is_trained(keys.take("weight"), turn.message.role, where);
  return turn;
}

}  // namespace

std::vector<Turn> read_turns(const OrderedJson& list, const std::string& key,
                             const std::string& where, std::vector<std::string>& ignored) {
  if (!list.is_array() || list.empty())
    throw InputError(concat(where, ": ", key, ": not an array of at least one message"));
  std::vector<Turn> turns;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string at = concat(where, ": ", key, "[", i, "]");
    RowKeys keys(list[i], at);
    const bool sharegpt = keys.has("from") && !keys.has("role");
    turns.push_back(sharegpt ? read_sharegpt(keys, at) : read_openai(keys, at, ignored));
    keys.finish("a message", ignored);
  }
  return turns;
}

std::shared_ptr<const OrderedJson> read_tools(const OrderedJson& tools, const std::string& where) {
  if (is_empty_value(tools)) return nullptr;
  OrderedJson list = array_of(tools, where);
  for (std::size_t i = 0; i < list.size(); ++i)
    list[i] = framed(std::move(list[i]), concat(where, "[", i, "]"));
  if (list.empty()) return nullptr;
  return std::make_shared<const OrderedJson>(std::move(list));
}

}  // namespace lk
