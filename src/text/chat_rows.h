// Reads the turns and tools of chat rows, as OpenAI's and ShareGPT's files write them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"
#include "text/chat_template.h"

namespace lk {

struct Turn {
  Message message;
  bool trained = false;  // whether the loss is taken on it: an assistant's turn of weight 1
};

struct ChatRow {
  std::vector<Turn> turns;
  std::shared_ptr<const OrderedJson> tools;  // [{"type":"function","function":{...}}]; null: none
};

// Reads a list of messages, each either OpenAI's {"role","content"[,"weight","tool_calls",
// "tool_call_id","name","reasoning_content"]}, with content as text, parts of text (which are in
// Message::more too), or null beside tool calls, or ShareGPT's {"from","value"[,"weight"]}. Arguments of a call become an object, also
// where they are written as JSON text; `key` names the list in messages. Adds keys of records to
// `ignored`. InputError naming `where`, the message and the key.
std::vector<Turn> read_turns(const OrderedJson& list, const std::string& key,
                             const std::string& where, std::vector<std::string>& ignored);

// Reads a row's tools: an array of functions, or its JSON text. A bare function gets the frame
// {"type":"function","function":...} that templates expect. Null if there are none.
std::shared_ptr<const OrderedJson> read_tools(const OrderedJson& tools, const std::string& where);

}  // namespace lk
