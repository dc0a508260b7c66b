#include "text/tool_turns.h"

#include <algorithm>

#include "tensor/error.h"
#include "text/jinja/json.h"
#include "text/jinja/search.h"
#include "text/white_space.h"

namespace lk {

namespace {

// What the template makes of the chat; empty if it refuses. A template that can't come to an end
// with these few words won't with a row's.
std::string rendered_or_nothing(const ChatTemplate& chat, const std::vector<Message>& messages,
                                const OrderedJson* tools = nullptr) {
  try {
    return chat.render(messages, true, tools).text;
  } catch (const jinja::OverBudget&) {
    throw;
  } catch (const InputError&) {
    return "";
  }
}

std::shared_ptr<const OrderedJson> shared(OrderedJson json) {
  return std::make_shared<const OrderedJson>(std::move(json));
}

// As templates write JSON; `place`: where it stands, for messages.
std::string json_text(const OrderedJson& json, const jinja::JsonPlace& place) {
  jinja::Budget budget(UINT64_MAX, UINT64_MAX);
  return jinja::to_json(jinja::from_json(json, budget, false, place), {}, budget).s;
}

// Few words: they stand in every row, and count towards --seq-len.
std::string tools_as_text(const OrderedJson& tools) {
  std::string text = "<tools>";
  const jinja::JsonPlace list{nullptr, "tools"};
  for (std::size_t i = 0; i < tools.size(); ++i)
    text += "\n" + json_text(tools[i], {&list, {}, static_cast<std::int64_t>(i)});
  return text +
         "\n</tools>\nCall one by <tool_call>\n{\"name\": ..., \"arguments\": {...}}\n</tool_call>";
}

std::string calls_as_text(const OrderedJson& calls) {
  std::string text;
  for (const OrderedJson& call : calls) {
    const OrderedJson& function = call.at("function");
    const OrderedJson said = {{"name", function.at("name")},
                              {"arguments", function.at("arguments")}};
    text += (text.empty() ? "" : "\n") +
            concat("<tool_call>\n", json_text(said, {nullptr, "tool_calls"}), "\n</tool_call>");
  }
  return text;
}

bool has_parts(const Message& m) {
  return m.more && m.more->contains("content") && m.more->at("content").is_array();
}

// Leaves the text of the content's parts alone.
void join_parts(Message& m) {
  if (!has_parts(m)) return;
  OrderedJson rest = *m.more;
  rest.erase("content");
  m.more = rest.empty() ? nullptr : shared(std::move(rest));
}

void put_tools(ChatRow& chat) {
  const std::string text = tools_as_text(*chat.tools);
  Message& first = chat.turns.front().message;
  if (first.role == "system") {
    join_parts(first);
    first.content += (first.content.empty() ? "" : "\n\n") + text;
  } else {
    chat.turns.insert(chat.turns.begin(), {{"system", text}, false});
  }
  chat.tools = nullptr;
}

void put_calls(Message& m) {
  m.content += (m.content.empty() ? "" : "\n") + calls_as_text(m.more->at("tool_calls"));
  OrderedJson rest = *m.more;
  rest.erase("tool_calls");
  rest.erase("content");
  m.more = rest.empty() ? nullptr : shared(std::move(rest));
}

// Each run of tools' answers becomes one user turn.
void put_answers(std::vector<Turn>& turns) {
  std::vector<Turn> out;
  bool behind_answer = false;
  for (Turn& turn : turns) {
    const bool answers = turn.message.role == "tool";
    if (answers) {
      const std::string text = "<tool_response>\n" + turn.message.content + "\n</tool_response>";
      if (behind_answer)
        out.back().message.content += "\n" + text;
      else
        out.push_back({{"user", text}, false});
    } else {
      out.push_back(std::move(turn));
    }
    behind_answer = answers;
  }
  turns = std::move(out);
}

bool calls_tools(const Message& m) { return m.more && m.more->contains("tool_calls"); }

// The text as it stands between the quotes of a JSON string.
std::string inside_json_string(std::string_view text) {
  const std::string quoted = json_text(OrderedJson(text), {});
  return quoted.substr(1, quoted.size() - 2);
}

// InputError unless the template writes `what`.
void refuse_unless(bool written, const std::string& template_name, const std::string& what) {
  if (!written)
    throw InputError(concat("the chat template (", template_name, ") does not write ", what));
}

// The roles of which the template writes contents that are lists of parts: one that takes contents to
// be texts fails on a list, or prints it with quotes in it. `before`: what a tool answers.
std::vector<std::string> roles_with_parts(const ChatTemplate& chat, const Message& before) {
  const OrderedJson content = OrderedJson::array({OrderedJson{{"type", "text"}, {"text", "zqx"}}});
  const Message user{"user", "x"};
  std::vector<std::string> roles;
  for (const char* role : {"system", "developer", "user", "assistant", "tool"}) {
    Message said{role, ""};
    OrderedJson more = {{"content", content}};
    if (said.role == "tool") more["tool_call_id"] = "call12345", more["name"] = "f";
    said.more = shared(std::move(more));
    const std::string text =
        rendered_or_nothing(chat, said.role == "user"        ? std::vector{said}
                                  : said.role == "assistant" ? std::vector{user, said}
                                  : said.role == "tool"      ? std::vector{user, before, said}
                                                             : std::vector{said, user});
    auto writes = [&](const char* what) { return text.find(what) != text.npos; };
    if (writes("zqx") && !writes("'zqx'") && !writes("\"zqx\"")) roles.emplace_back(role);
  }
  return roles;
}

// Where a rendered chat has the texts of its turns. They mostly come in their order, so each search
// begins where the last one ended.
class PartsOf {
 public:
  explicit PartsOf(std::string_view rendered) : rendered_(rendered) {}
  bool have(std::string_view text) {
    if (text.empty()) return true;
    for (const std::size_t begin : {from_, std::size_t{0}}) {
      const auto at = jinja::occurrences(rendered_.substr(begin), text, 1, false, budget_);
      if (at.empty()) continue;
      from_ = begin + at.front() + text.size();
      return true;
    }
    return false;
  }

 private:
  std::string_view rendered_;
  std::size_t from_ = 0;
  jinja::Budget budget_{UINT64_MAX, UINT64_MAX};
};

}  // namespace

bool ToolSupport::writes_parts(const std::string& role) const {
  return std::find(parts.begin(), parts.end(), role) != parts.end();
}

bool writes_system_turn(const ChatTemplate& chat) {
  return rendered_or_nothing(chat, {{"system", "zqx"}, {"user", "x"}}).find("zqx") !=
         std::string::npos;
}

ToolSupport find_tool_support(const ChatTemplate& chat) {
  const OrderedJson function = {
      {"name", "zqx"},
      {"description", "d"},
      {"parameters", {{"type", "object"}, {"properties", OrderedJson::object()}}}};
  const OrderedJson tools =
      OrderedJson::array({OrderedJson{{"type", "function"}, {"function", function}}});
  const OrderedJson called = {{"name", "zqx"}, {"arguments", {{"a", "zqy"}}}};
  const OrderedJson calls = OrderedJson::array(
      {OrderedJson{{"id", "call12345"}, {"type", "function"}, {"function", called}}});
  const Message user{"user", "x"}, answer{"assistant", "y"};
  Message call = answer, result{"tool", "zqz"};
  call.more = shared({{"tool_calls", calls}, {"content", nullptr}});
  result.more = shared({{"tool_call_id", "call12345"}, {"name", "zqx"}});

  auto writes = [&](const std::vector<Message>& messages, const char* text,
                    const OrderedJson* given = nullptr) {
    return rendered_or_nothing(chat, messages, given).find(text) != std::string::npos;
  };
  ToolSupport support;
  support.tools = writes({user}, "zqx", &tools);
  support.calls = writes({user, call}, "zqx") && writes({user, call}, "zqy");
  const Message& before = support.calls ? call : answer;
  support.parts = roles_with_parts(chat, before);
  support.tool_role = writes({user, before, result}, "zqz") || support.writes_parts("tool");
  support.developer =
      writes({{"developer", "zqx"}, user}, "zqx") || support.writes_parts("developer");
  support.system = writes_system_turn(chat) || support.writes_parts("system");
  return support;
}

std::vector<std::string> fit_to_template(ChatRow& chat, const ToolSupport& support) {
  bool developer = false, calls = false, answers = false;
  const bool tools = chat.tools && !support.tools;
  for (Turn& turn : chat.turns) {
    Message& m = turn.message;
    if (m.role == "developer" && !support.developer) m.role = "system", developer = true;
    if (calls_tools(m) && !support.calls) put_calls(m), calls = true;
    if (!support.writes_parts(m.role)) join_parts(m);
    answers = answers || (m.role == "tool" && !support.tool_role);
  }
  if (answers) put_answers(chat.turns);
  if (tools) put_tools(chat);
  std::vector<std::string> put;
  if (tools) put.emplace_back("tools as a system turn");
  if (calls) put.emplace_back("tool_calls as <tool_call> in the assistant's turn");
  if (answers) put.emplace_back("tool turns as <tool_response> in a user turn");
  if (developer) put.emplace_back("developer turns as system turns");
  return put;
}

void require_written(const ChatRow& chat, const std::string& rendered, const std::string& name) {
  PartsOf parts(rendered);
  auto found = [&](std::string_view text) { return parts.have(text); };
  auto written = [&](const OrderedJson& text) {
    return found(strip(text.get_ref<const std::string&>()));
  };
  if (chat.tools)
    for (const OrderedJson& tool : *chat.tools)
      refuse_unless(written(tool.at("function").at("name")), name, "all of the row's tools");
  for (std::size_t i = 0; i < chat.turns.size(); ++i) {
    const Message& m = chat.turns[i].message;
    // Templates write tools' answers as they are or as JSON, and may set thoughts apart.
    auto check_said = [&](std::string_view text) {
      const std::string_view said = thoughts_and_said(text, m.role).second;
      refuse_unless(found(said) || found(inside_json_string(said)), name,
                    concat("the content of message ", i, " (", m.role, ")"));
    };
    if (has_parts(m))
      for (const OrderedJson& part : m.more->at("content"))
        check_said(part.at("text").get_ref<const std::string&>());
    else
      check_said(m.content);
    if (!m.more) continue;
    if (calls_tools(m))
      for (const OrderedJson& call : m.more->at("tool_calls"))
        refuse_unless(written(call.at("function").at("name")), name,
                      concat("tool_calls of message ", i));
    for (const char* key : {"reasoning_content", "reasoning", "thinking"})
      if (m.more->contains(key))
        refuse_unless(written(m.more->at(key)), name, concat(key, " of message ", i));
    if (m.more->contains("name") && m.role != "tool")
      refuse_unless(written(m.more->at("name")), name, concat("name of message ", i));
  }
}

std::pair<std::string_view, std::string_view> thoughts_and_said(std::string_view text,
                                                                const std::string& role) {
  constexpr std::string_view kBegin = "<think>", kEnd = "</think>";
  const std::size_t end = role == "assistant" ? text.rfind(kEnd) : text.npos;
  if (end == text.npos) return {"", strip(text)};
  std::string_view thoughts = strip(text.substr(0, end));
  if (thoughts.starts_with(kBegin)) thoughts = strip(thoughts.substr(kBegin.size()));
  return {thoughts, strip(text.substr(end + kEnd.size()))};
}

Thoughts find_thoughts(const ChatRow& chat, const std::string& rendered) {
  PartsOf parts(rendered);
  Thoughts thoughts;
  for (const Turn& turn : chat.turns) {
    const std::string_view text = thoughts_and_said(turn.message.content, turn.message.role).first;
    if (!turn.trained || text.empty()) continue;
    ++thoughts.said;
    thoughts.lost += !parts.have(text);
  }
  return thoughts;
}

}  // namespace lk
