// FittedTemplate: a model's chat template, with what becomes of chats that it has no place for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "text/chat_rows.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tool_turns.h"

namespace lk {

// UsageError naming --system if `text` is empty or not UTF-8.
void check_system_text(const std::optional<std::string>& text);
// What a conversation begins with: a system turn of `text`, or nothing. UsageError naming --system
// if check_system_text() refuses it or the template does not write system turns.
std::vector<Message> opening_turns(const ChatTemplate& chat_template,
                                   const std::optional<std::string>& text);

class FittedTemplate {
 public:
  // `template_name` as ChatTemplate::choose() takes it. `system`: the system turn of chats that have
  // none. Throws as choose() and opening_turns() do.
  FittedTemplate(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
                 const std::optional<std::string>& system);

  const ChatTemplate& operator*() const { return template_; }
  const ChatTemplate* operator->() const { return &template_; }

  struct Fitted {
    std::vector<std::string> written;  // how what the template has no place for is written
    bool own_system = false;           // `system` is not, as the chat has a system turn
  };
  Fitted fit(ChatRow& chat) const;
  // InputError naming the template and what `rendered`, made of a fitted chat, lacks of it.
  void require_written(const ChatRow& chat, const std::string& rendered) const;

 private:
  ChatTemplate template_;
  ToolSupport support_;
  std::optional<std::string> system_;
};

}  // namespace lk
