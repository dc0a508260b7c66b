// Conversation: turns of a user and a model. Their keys and values stay in the cache between turns.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/generate.h"
#include "text/chat_template.h"

namespace lk {

class Conversation {
 public:
  // `capacity`: the most tokens of the whole conversation; 0, and at most, the model's positions. The
  // cache grows with the conversation (Generator). `system`: a system turn to begin with; UsageError
  // if the template does not write it.
  Conversation(Transformer& model, const Tokenizer& tokenizer, ChatTemplate chat,
               const SamplingSettings& sampling, std::int64_t capacity,
               const std::optional<std::string>& system = {});
  // Returns the model's answer to `text`, the user's next turn, given everything said before. Only
  // tokens that the cache does not hold yet go through the model. `on_text` (may be empty) sees the
  // answer as it is generated; returning false ends it. Throws UsageError when the conversation is
  // full; it is then unchanged.
  Generation reply(const std::string& text, const std::function<bool(std::string_view)>& on_text);
  // Forgets all turns but the first system turn.
  void reset();
  // Chooses the variant of the model that answers from now on; see GenerationRequest.
  void set_variant(std::int32_t variant) { variant_ = variant; }
  const std::vector<Message>& messages() const { return messages_; }

 private:
  const Tokenizer& tokenizer_;
  ChatTemplate chat_;
  SamplingSettings sampling_;
  Generator generator_;
  std::int32_t variant_ = -1;
  std::vector<Message> opening_;  // the system turn, if there is one
  std::vector<Message> messages_;
};

}  // namespace lk
