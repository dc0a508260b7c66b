#include "run/conversation.h"

#include <algorithm>

#include "io/utf8.h"
#include "text/fitted_template.h"

namespace lk {

Conversation::Conversation(Transformer& model, const Tokenizer& tokenizer, ChatTemplate chat,
                           const SamplingSettings& sampling, std::int64_t capacity,
                           const std::optional<std::string>& system)
    : tokenizer_(tokenizer),
      chat_(std::move(chat)),
      sampling_(sampling),
      generator_(model, &tokenizer,
                 {.max_batch = 1,
                  .capacity = std::min(capacity > 0 ? capacity : INT64_MAX, model.max_positions()),
                  .reuse_prefix = true}),
      opening_(opening_turns(chat_, system)),
      messages_(opening_) {}

Generation Conversation::reply(const std::string& text,
                               const std::function<bool(std::string_view)>& on_text) {
  std::vector<Message> said = messages_;
  said.push_back({"user", text});
  const RenderedChat rendered = chat_.render(said, true);
  GenerationRequest request{encode_chat(tokenizer_, rendered).ids, sampling_, variant_};
  GenerationEvents events;
  if (on_text) events.on_text = [&](std::size_t, std::string_view piece) { return on_text(piece); };
  Generation g = std::move(generator_.run(std::span(&request, 1), events)[0]);
  said.push_back({"assistant", utf8_repaired(g.text)});
  messages_ = std::move(said);
  return g;
}

void Conversation::reset() {
  messages_ = opening_;
  generator_.forget();
}

}  // namespace lk
