// TextStream: turns generated tokens into text as soon as the text is certain.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace lk {

// Gives text out in whole characters, and only when it can no longer be the beginning of a stop
// text.
class TextStream {
 public:
  // `prompt`: the ids that the text continues; none of their text comes out.
  TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt,
             std::vector<std::string> stop);
  // Takes a token and returns the text that became certain with it. At a stop text (see stopped())
  // the text ends before it, and no token may follow.
  std::string push(std::int32_t id);
  // The rest, at the end of the generation: a beginning of a stop text, or an unfinished character.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::string take(std::size_t bytes);
  TextDecoder decoder_;
  std::vector<std::string> stop_;
  std::string held_;  // decoded text that is not yet certain
  bool stopped_ = false;
};

}  // namespace lk
