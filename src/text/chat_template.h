// Chat templates: the model's own, rendered as Jinja2 renders it (text/jinja/template.h), or a
// built-in one chosen by name.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/json_fwd.h"
#include "text/tokenizer.h"

namespace lk {

namespace jinja {
class Template;
}

struct Message {
  std::string role;  // system, user, assistant; tool and developer where the template knows them
  std::string content;
  // An object of what else the message says: tool_calls, tool_call_id, name, reasoning_content, ...
  // Null: nothing. A member "content" replaces the content in a model's own template: null in a turn
  // of tool calls alone, or the parts of which `content` is the text.
  std::shared_ptr<const OrderedJson> more = {};
};

struct RenderedChat {
  std::string text;
  // Byte ranges of content, which users and models wrote: encoded without special tokens.
  std::vector<std::pair<std::size_t, std::size_t>> content;
  // Byte ranges the loss is taken on: each assistant turn's content and its end token, or what
  // {% generation %} encloses.
  std::vector<std::pair<std::size_t, std::size_t>> assistant;
  // How many of these each turn of the assistant has: one, unless {% generation %} says otherwise.
  std::vector<std::size_t> ranges_of_turn = {};
  // Whether the template writes a turn otherwise once more turns follow, as those do that drop
  // earlier thoughts. `assistant` is empty then: the turn stands nowhere in `text` as a model
  // would have written it.
  bool rewrites = false;
};

// What a template can ask about the model's tokens; empty strings are left undefined.
struct TemplateTokens {
  std::string bos = {}, eos = {};
  std::vector<std::string> stops = {};                           // each ends a turn
  std::vector<std::pair<std::string, std::string>> others = {};  // by name: {"pad_token", "<pad>"}
};

class ChatTemplate {
 public:
  // The model's own template from its text, or the built-in one called `name` (from --template:
  // "chatml", "smollm2", "llama3", "gemma", ...) if that is not empty. UsageError naming --template and its
  // values if there is neither, InputError with the line if the text is not in the subset of Jinja
  // that is read.
  // `tool_text`: the model's template for chats with tools, if that is another. One that is not in
  // the subset matters only to these: why_no_tools().
  static ChatTemplate choose(const std::string& template_text, const std::string& name = "",
                             const TemplateTokens& tokens = {}, const std::string& tool_text = "");
  static ChatTemplate choose(const Tokenizer& tokenizer, const std::string& name = "");
  // A built-in template's name, "own" for the model's.
  const std::string& name() const { return name_; }
  // Why the model's template for chats with tools can't be read; empty if it can, or there is none.
  const std::string& why_no_tools() const { return why_no_tools_; }
  // What a built-in template writes as single tokens and the model does not have: "<|im_end|>". Such a
  // marker is several tokens, its letters. Empty for a model's own template.
  std::vector<std::string> missing_markers(const Tokenizer& tokenizer) const;
  // Exactly what the model's Jinja template prints for these messages. `assistant` is filled if no
  // generation prompt is asked for. It is what {% generation %} encloses, or, without these, what
  // each turn adds to the prompt it answers, up to the first stop token behind its content.
  // InputError if the answered prompt does not begin with the prompt, so that this can't be told.
  // `tools`: an array of functions that the model may call; null: none. A built-in template writes
  // role and content only.
  RenderedChat render(const std::vector<Message>& messages, bool add_generation_prompt,
                      const OrderedJson* tools = nullptr) const;
  // The chat as far as messages[i], an assistant's turn, as if it ended there: `assistant` is that
  // turn alone.
  RenderedChat render_turn(const std::vector<Message>& messages, std::size_t i,
                           const OrderedJson* tools = nullptr) const;

 private:
  RenderedChat render_built_in(std::span<const Message> messages, bool ask) const;
  RenderedChat render_own(std::span<const Message> messages, const OrderedJson* tools,
                          bool ask) const;
  void count_generated(std::span<const Message> messages, const OrderedJson* tools,
                       RenderedChat& chat) const;
  void find_assistant(std::span<const Message> messages, const OrderedJson* tools,
                      RenderedChat& chat) const;
  std::pair<std::size_t, std::size_t> last_turn(std::span<const Message> messages,
                                                const OrderedJson* tools,
                                                const RenderedChat& chat) const;

  std::string name_, why_no_tools_;
  std::shared_ptr<const jinja::Template> own_, own_for_tools_;  // the second may be null
  TemplateTokens tokens_;
};

// What is wrong with a turn to train that a template with {% generation %} does not enclose.
std::string nothing_generated(std::size_t message);

// A line of warning for each of the missing_markers() of the template that the user named; none for
// the model's own, which has no name.
std::vector<std::string> marker_warnings(const Tokenizer& tokenizer,
                                         const std::optional<std::string>& name);

// The ids of a rendered chat. The template writes BOS where the model wants it, so none is added;
// InputError if it stands there twice.
Tokenizer::Encoding encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat);

}  // namespace lk
