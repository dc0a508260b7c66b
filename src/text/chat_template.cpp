#include "text/chat_template.h"

#include <algorithm>

#include "io/sha256.h"
#include "tensor/error.h"
#include "text/utf8.h"

namespace lk {

namespace {

// Every family we know is turns of  before role after content end.  What differs is in this table.
struct Style {
  const char* name;
  const char* start;  // before the first turn
  const char* before;
  const char* after;
  const char* end;     // the end token: the model must learn to write it
  const char* behind;  // after the end token
  bool trims;          // content loses white space at both ends (Jinja's trim)
  // The system turn written where the messages have none; null: none is. With `system_always` it is
  // the beginning of every system turn.
  const char* system;
  bool system_always;
  const char*
      generation;    // what asks for the assistant's turn, if not before + "assistant" + after
  bool always_asks;  // the template asks for it whether wanted or not
};

constexpr const char* kSmolSystem =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
constexpr const char* kQwen2System = "You are a helpful assistant.";
constexpr const char* kQwen25System =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
constexpr const char* kLlama31System =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
constexpr const char *kIm = "<|im_start|>", *kImEnd = "<|im_end|>";
constexpr const char *kHead = "<|start_header_id|>", *kHeadEnd = "<|end_header_id|>\n\n";
constexpr const char *kBegin = "<|begin_of_text|>", *kEot = "<|eot_id|>";

constexpr Style kStyles[] = {
    {"chatml", "", kIm, "\n", kImEnd, "\n", false, nullptr, false, nullptr, false},
    {"smollm2", "", kIm, "\n", kImEnd, "\n", false, kSmolSystem, false, nullptr, false},
    {"qwen2", "", kIm, "\n", kImEnd, "\n", false, kQwen2System, false, nullptr, false},
    {"qwen2.5", "", kIm, "\n", kImEnd, "\n", false, kQwen25System, false, nullptr, false},
    {"llama3", kBegin, kHead, kHeadEnd, kEot, "", true, nullptr, false, nullptr, false},
    {"llama3-asks", kBegin, kHead, kHeadEnd, kEot, "", true, nullptr, false, nullptr, true},
    {"llama3.1", kBegin, kHead, kHeadEnd, kEot, "", true, kLlama31System, true, nullptr, false},
    {"zephyr", "", "<|", "|>\n", "</s>", "\n", false, nullptr, false, "<|assistant|>\n", false},
};

// SHA-256 of the canonical text of published templates. A model's own text is only ever compared.
struct Known {
  const char* sha256;
  const char* style;
};
constexpr Known kKnown[] = {
    {"153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3", "chatml"},
    {"58c1a1f04baa7adaeaba1f90267c3d57d9396f0c1f0129bdde9e76d3c6784af7", "chatml"},
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", "smollm2"},
    {"793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb", "qwen2"},
    {"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122", "llama3"},
    {"b48c47f6443892716176eb200bf4ef108f64e06ca26ed0fa8ebc0a4b3992fcb2", "llama3-asks"},
    {"66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362", "zephyr"},
    {"c0e885e632fb5fb6760abc4749a1437f4519f7d72e8d701c562a8f8efeab45fd", "llama3.1"},
    {"99799a835a31e1d33c4a9c7ee8a0de3923b291a95155ed6dc8efcbd0fe1d0238", "llama3.1"},
    {"907045448bf38e251749a0b64cecff7ef420d9cae58533a6ca120b7f35d4742e", "qwen2.5"},
    {"a18cc698dd45623eb707279d08e66f7bb8d76afc89ead84016b88487b395b5cc", "qwen2.5"},
};

// Templates travel with their newlines as such or as the escape \n inside a Jinja string, which
// prints the same; and Jinja drops a trailing newline.
std::string canonical(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    if (text[i] == '\\' && i + 1 < text.size() && text[i + 1] == 'n') {
      out += '\n';
      ++i;
    } else {
      out += text[i];
    }
  }
  while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) out.pop_back();
  return out;
}

std::string names() {
  std::string out;
  for (const Style& style : kStyles) out += std::string(out.empty() ? "" : ", ") + style.name;
  return out;
}

const Style* find(const std::string& name) {
  for (const Style& style : kStyles)
    if (name == style.name) return &style;
  return nullptr;
}

// Python's str.strip(): White_Space and the four ASCII separators.
std::string_view strip(std::string_view s) {
  auto space = [](char32_t c) {
    return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
  };
  while (!s.empty() && space(utf8_decode(s.data())))
    s.remove_prefix(utf8_length(static_cast<unsigned char>(s[0])));
  while (!s.empty()) {
    std::size_t last = s.size() - 1;
    while (last > 0 && (static_cast<unsigned char>(s[last]) & 0xC0) == 0x80) --last;
    if (!space(utf8_decode(s.data() + last))) break;
    s.remove_suffix(s.size() - last);
  }
  return s;
}

}  // namespace

ChatTemplate ChatTemplate::choose(const std::string& template_text, const std::string& name) {
  ChatTemplate chosen;
  chosen.name_ = name;
  if (!name.empty()) {
    if (find(name) == nullptr)
      throw UsageError("--template " + name + ": not a template we know; they are " + names());
    return chosen;
  }
  if (template_text.empty())
    throw UsageError("the model has no chat template: pass --template, one of " + names());
  const std::string text = canonical(template_text);
  Sha256 sha;
  sha.update(text.data(), text.size());
  const std::string hash = sha.hex();
  for (const Known& known : kKnown)
    if (hash == known.sha256) {
      chosen.name_ = known.style;
      return chosen;
    }
  throw UsageError("the model's chat template (SHA-256 " + hash.substr(0, 12) +
                   "...) is not one we know, and templates from files are never executed: pass "
                   "--template, one of " +
                   names());
}

RenderedChat ChatTemplate::render(const std::vector<Message>& messages,
                                  bool add_generation_prompt) const {
  const Style* style = find(name_);
  check(style != nullptr, "chat template ", name_, " is unknown");
  if (messages.empty()) throw InputError("a chat needs at least one message");
  RenderedChat out;
  out.text = style->start;
  auto turn = [&](const std::string& role, std::string_view fixed, std::string_view content) {
    out.text += style->before + role + style->after;
    out.text += fixed;
    const std::size_t begin = out.text.size();
    out.text += style->trims ? strip(content) : content;
    if (out.text.size() > begin) out.content.emplace_back(begin, out.text.size());
    out.text += style->end;
    if (role == "assistant") out.assistant.emplace_back(begin, out.text.size());
    out.text += style->behind;
  };
  if (style->system != nullptr && messages[0].role != "system") turn("system", style->system, "");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    if (m.role != "system" && m.role != "user" && m.role != "assistant")
      throw InputError("role \"" + m.role + "\" is not system, user or assistant");
    if (std::size_t ok = utf8_valid_prefix(m.content); ok != m.content.size())
      throw InputError(concat("the content of message ", i, " is not valid UTF-8 at byte ", ok));
    const bool extended = style->system_always && i == 0 && m.role == "system";
    turn(m.role, extended ? style->system : "", m.content);
  }
  if (add_generation_prompt || style->always_asks)
    out.text += style->generation != nullptr
                    ? std::string(style->generation)
                    : std::string(style->before) + "assistant" + style->after;
  return out;
}

}  // namespace lk
