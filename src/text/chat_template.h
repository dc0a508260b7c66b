// Chat templates: built in, chosen by matching the model's own template text. A template from a
// file is never executed.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace lk {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

struct RenderedChat {
  std::string text;
  // Byte ranges of text written by users and models (content): encoded without special tokens.
  std::vector<std::pair<std::size_t, std::size_t>> content;
  // Byte ranges the loss is taken on: each assistant turn's content and its end token.
  std::vector<std::pair<std::size_t, std::size_t>> assistant;
};

class ChatTemplate {
 public:
  // By the model's template text; UsageError that names --template and its values if it is unknown.
  // `name` (from --template) overrides: "chatml", "smollm2", "llama3", ...
  static ChatTemplate choose(const std::string& template_text, const std::string& name = "");
  const std::string& name() const { return name_; }
  // Exactly what the model's own Jinja template would print for these messages.
  RenderedChat render(const std::vector<Message>& messages, bool add_generation_prompt) const;

 private:
  std::string name_;
};

}  // namespace lk
