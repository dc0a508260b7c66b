// Chats with tools and templates that may have no place for them: what a template can't write itself
// becomes text of ordinary turns, between the tags that Hermes and Qwen use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat_rows.h"
#include "text/chat_template.h"

namespace lk {

// What a template writes by itself. Found by rendering small chats with and without each.
struct ToolSupport {
  bool tools = false;                   // the functions that may be called
  bool calls = false;                   // an assistant's tool_calls
  bool tool_role = false;               // turns of the role tool
  bool developer = false;               // turns of the role developer
  bool system = false;                  // turns of the role system
  std::vector<std::string> parts = {};  // contents that are lists of parts, of these roles
  bool writes_parts(const std::string& role) const;
};
// Whether the template writes system turns. Some refuse them, some leave them out in silence.
bool writes_system_turn(const ChatTemplate& chat_template);
ToolSupport find_tool_support(const ChatTemplate& chat_template);

// Puts what the template can't write into turns that it can: parts become one text, tools into the system turn, calls into
// the assistant's text as <tool_call>, tools' answers into a user turn as <tool_response>, and
// developer turns become system turns. Returns what was put, for the user: "tools", "tool_calls", ...
std::vector<std::string> fit_to_template(ChatRow& chat, const ToolSupport& support);

// InputError naming the template and what is lost if `rendered` lacks a turn's text, a tool's or
// call's name, a name of a speaker or a reasoning that the chat has: a template drops in silence
// what it doesn't know.
void require_written(const ChatRow& chat, const std::string& rendered, const std::string& name);

// A turn's text in two: the thoughts that an assistant's begins with, without their tags, and what
// it says. Either may be empty.
std::pair<std::string_view, std::string_view> thoughts_and_said(std::string_view text,
                                                                const std::string& role);

// The trained turns whose content begins with thoughts, up to </think>, and those of them whose
// thoughts `rendered` lacks: many templates take them out of the content.
struct Thoughts {
  std::int64_t said = 0, lost = 0;
};
Thoughts find_thoughts(const ChatRow& chat, const std::string& rendered);

}  // namespace lk
