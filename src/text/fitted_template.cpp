#include "text/fitted_template.h"

#include <algorithm>

#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {

namespace {

bool has_system_turn(const ChatRow& chat) {
  return std::any_of(chat.turns.begin(), chat.turns.end(), [](const Turn& turn) {
    return turn.message.role == "system" || turn.message.role == "developer";
  });
}

}  // namespace

void check_system_text(const std::optional<std::string>& text) {
  if (!text) return;
  if (text->empty()) throw UsageError("`system`: the text is empty");
  if (utf8_valid_prefix(*text) != text->size()) throw UsageError("`system`: not valid UTF-8");
}

std::vector<Message> opening_turns(const ChatTemplate& chat_template,
                                   const std::optional<std::string>& text) {
  check_system_text(text);
  if (!text) return {};
  if (!writes_system_turn(chat_template))
    throw UsageError(concat("`system`: the chat template (", chat_template.name(),
                            ") does not write system turns; put the text into the first user turn, "
                            "or choose a template that does by `template`"));
  return {{"system", *text}};
}

FittedTemplate::FittedTemplate(const Tokenizer& tokenizer,
                               const std::optional<std::string>& template_name,
                               const std::optional<std::string>& system)
    : template_(ChatTemplate::choose(tokenizer, template_name.value_or(""))),
      support_(find_tool_support(template_)),
      system_(system) {
  opening_turns(template_, system_);  // refuses what can't be written
}

FittedTemplate::Fitted FittedTemplate::fit(ChatRow& chat) const {
  if (chat.tools && !template_.why_no_tools().empty()) throw InputError(template_.why_no_tools());
  Fitted fitted;
  if (system_) {
    fitted.own_system = has_system_turn(chat);
    if (!fitted.own_system) chat.turns.insert(chat.turns.begin(), {{"system", *system_}, false});
  }
  fitted.written = fit_to_template(chat, support_);
  return fitted;
}

void FittedTemplate::require_written(const ChatRow& chat, const std::string& rendered) const {
  lk::require_written(chat, rendered, template_.name());
  const bool system = std::any_of(chat.turns.begin(), chat.turns.end(),
                                  [](const Turn& turn) { return turn.message.role == "system"; });
  if (system && !support_.system)
    throw InputError(
        concat("the chat template (", template_.name(), ") does not write system turns"));
}

}  // namespace lk
