// Conversation: turns of a user and a model, whose keys and values stay in the cache between turns.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/generate.h"
#include "text/chat_template.h"

namespace lk {

class Conversation {
 public:
  // `capacity`: tokens of the whole conversation, at most the model's positions.
  Conversation(Transformer& model, const Tokenizer& tokenizer, ChatTemplate chat,
               const SamplingSettings& sampling, std::int64_t capacity);
  // The model's answer to what the user says now, after all that was said. Only tokens that the
  // cache does not hold yet go through the model. `on_text` (may be empty) sees the answer as it
  // comes; returning false cuts it. Throws UsageError when the conversation is full; it is then as
  // before.
  Generation reply(const std::string& text, const std::function<bool(std::string_view)>& on_text);
  // Forgets everything that was said.
  void reset();
  // Which variant of the model answers from now on; see GenerationRequest.
  void set_variant(std::int32_t variant) { variant_ = variant; }
  const std::vector<Message>& messages() const { return messages_; }

 private:
  const Tokenizer& tokenizer_;
  ChatTemplate chat_;
  SamplingSettings sampling_;
  Generator generator_;
  std::int32_t variant_ = -1;
  std::vector<Message> messages_;
};

}  // namespace lk
