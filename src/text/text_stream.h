// TextStream: generated tokens become text as soon as it is certain.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace lk {

// Text leaves in whole characters, and only when it can no longer be the beginning of a stop text.
class TextStream {
 public:
  // `prompt`: the ids that the text continues; none of their text comes out.
  TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt,
             std::vector<std::string> stop);
  // The text that became certain with this token. After a stop text (see stopped()) it ends before
  // it, and nothing may follow.
  std::string push(std::int32_t id);
  // What is left at the end of the generation: a beginning of a stop text, an unfinished character.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::string take(std::size_t bytes);
  TextDecoder decoder_;
  std::vector<std::string> stop_;
  std::string held_;  // decoded, not yet certain
  bool stopped_ = false;
};

}  // namespace lk
