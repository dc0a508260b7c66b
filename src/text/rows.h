// One JSON object of a data file -> one Row: the formats.
#pragma once

#include <optional>
#include <string>

#include "io/json.h"
#include "text/chat_template.h"
#include "text/dataset.h"
#include "text/tokenizer.h"

namespace lk {

// text               {"text"}: encode(text) + [eos], all of it trained.
// prompt-completion  {"prompt","completion"}: encode(prompt + completion) + [eos], trained from
//                    position len(encode(prompt)).
// alpaca             {"instruction","output"[,"input","system"]}: a user turn "instruction\ninput"
//                    and an assistant turn, as messages.
// messages           {"messages":[{"role","content"[,"weight":0|1]}]}: the model's chat template;
//                    trained are the assistant's turns (weight 0: not that one) with their end
//                    token.
// Keys that are not named here are allowed and ignored.
class RowBuilder {
 public:
  // `format`: one of the above, or "auto": found from the first row. UsageError if it is neither.
  RowBuilder(const Tokenizer& tokenizer, const std::optional<std::string>& template_name,
             const std::string& format);
  // InputError naming `where` and the key. The first row settles format and template: after it,
  // build() changes nothing and may be called by many threads at a time.
  Row build(const Json& object, const std::string& where);
  const std::string& format() const { return format_; }

 private:
  Row text(const Json& object, const std::string& where);
  Row prompt_completion(const Json& object, const std::string& where);
  Row alpaca(const Json& object, const std::string& where);
  Row messages(const Json& object, const std::string& where);
  Row chat(const std::vector<Message>& messages, const std::vector<bool>& trained,
           const std::string& where);
  Row completion(const std::string& prompt, const std::string& text, const std::string& where);

  const Tokenizer& tokenizer_;
  std::optional<std::string> template_name_;
  std::string format_;
  std::optional<ChatTemplate> template_;  // chosen by the first row that needs it
};

}  // namespace lk
