#include "text/text_stream.h"

#include <algorithm>
#include <string_view>

#include "io/utf8.h"

namespace lk {
namespace {

// The number of bytes at the end of `text` that begin a character and do not finish it.
std::size_t unfinished_bytes(std::string_view text) {
  for (std::size_t n = 1; n <= std::min<std::size_t>(3, text.size()); ++n) {
    const auto byte = static_cast<unsigned char>(text[text.size() - n]);
    if (byte >= 0xC0) return utf8_length(byte) > n ? n : 0;
    if (byte < 0x80) return 0;
  }
  return 0;
}

// The length of the longest end of `text` that is a beginning of `stop`.
std::size_t begun(std::string_view text, std::string_view stop) {
  for (std::size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n)
    if (text.ends_with(stop.substr(0, n))) return n;
  return 0;
}

}  // namespace

std::string TextStream::take(std::size_t bytes) {
  std::string text = held_.substr(0, bytes);
  held_.erase(0, bytes);
  return text;
}

TextStream::TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt,
                       std::vector<std::string> stop)
    : decoder_(tokenizer), stop_(std::move(stop)) {
  for (std::int32_t id : prompt) decoder_.next(id);
}

std::string TextStream::push(std::int32_t id) {
  held_ += decoder_.next(id);
  std::size_t end = std::string::npos;
  for (const std::string& s : stop_) end = std::min(end, held_.find(s));
  if (end != std::string::npos) {
    stopped_ = true;
    std::string text = take(end);
    held_.clear();
    return text;
  }
  std::size_t hold = unfinished_bytes(held_);
  for (const std::string& s : stop_) hold = std::max(hold, begun(held_, s));
  return take(held_.size() - hold);
}

std::string TextStream::finish() { return take(held_.size()); }

}  // namespace lk
