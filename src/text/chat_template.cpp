#include "text/chat_template.h"

#include <algorithm>

#include "io/json.h"
#include "io/printable.h"
#include "io/utf8.h"
#include "tensor/error.h"
#include "text/jinja/json.h"
#include "text/jinja/search.h"
#include "text/jinja/template.h"
#include "text/tool_turns.h"
#include "text/white_space.h"

namespace lk {

namespace {

// In every family we know a turn is  before role after content end.  This table has what differs.
struct Style {
  const char* name;
  const char* start;  // before the first turn
  const char* before;
  const char* after;
  const char* end;     // the end token: the model must learn to write it
  const char* behind;  // after the end token
  bool trims;          // content loses white space at both ends (Jinja's trim)
  // The system turn for messages that have none; null: none is written. With `system_always` it
  // begins every system turn.
  const char* system;
  bool system_always;
  const char* generation;  // asks for the assistant's turn; null: before + assistant + after does
  bool always_asks;        // the template asks for it whether wanted or not
  const char* assistant = "assistant";  // what the template calls the assistant
  bool merges_system = false;           // into the first user turn; turns must alternate
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
    {"gemma", "<bos>", "<start_of_turn>", "\n", "<end_of_turn>", "\n", true, nullptr, false,
     nullptr, false, "model", true},
};

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

void check_messages(const std::vector<Message>& messages, bool built_in) {
  auto known = [&](const std::string& role) {
    if (role == "system" || role == "user" || role == "assistant") return true;
    return !built_in && (role == "tool" || role == "developer");
  };
  if (messages.empty()) throw InputError("a chat needs at least one message");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    require(!m.more || m.more->is_object(), "messages[", i, "]: Message.more is not an object");
    if (!known(m.role))
      throw InputError(concat("role ", printable(m.role), " is none of system, user, assistant",
                              built_in ? "" : ", tool, developer"));
    if (std::size_t ok = utf8_valid_prefix(m.content); ok != m.content.size())
      throw InputError(concat("the content of message ", i, " is not valid UTF-8 at byte ", ok));
  }
}

// About as many bytes as the values of `json` take in the template language.
std::uint64_t json_size(const OrderedJson& json) {
  std::uint64_t size = 64;
  if (json.is_string()) size += json.get_ref<const std::string&>().size();
  if (json.is_structured())
    for (const auto& [key, value] : json.items()) size += key.size() + json_size(value);
  return size;
}

jinja::Value message_value(const Message& m, std::int64_t i, jinja::Budget& budget) {
  using jinja::Value;
  jinja::Text content;
  content.append_marked(m.content);
  std::vector<std::pair<std::string, Value>> members = {
      {"role", Value::text(m.role)}, {"content", Value::text(std::move(content))}};
  const jinja::JsonPlace list{nullptr, "messages"}, place{&list, {}, i};
  if (m.more) {
    for (const auto& [key, value] : m.more->items()) {
      jinja::Value member = jinja::from_json(value, budget, true, {&place, key});
      if (key == "content")
        members[1].second = std::move(member);
      else
        members.emplace_back(key, std::move(member));
    }
  }
  return jinja::make_dict(std::move(members), budget);
}

}  // namespace

ChatTemplate ChatTemplate::choose(const std::string& template_text, const std::string& name,
                                  const TemplateTokens& tokens, const std::string& tool_text) {
  ChatTemplate chosen;
  chosen.tokens_ = tokens;
  if (!name.empty()) {
    if (find(name) == nullptr)
      throw UsageError("`template` " + name + ": not a template we know; they are " + names());
    chosen.name_ = name;
    return chosen;
  }
  if (template_text.empty())
    throw UsageError("the model has no chat template: pass `template`, one of " + names());
  chosen.name_ = "own";
  try {
    chosen.own_ = std::make_shared<const jinja::Template>(template_text, "the chat template");
  } catch (const InputError& e) {
    throw InputError(concat(e.what(), " (`template` uses a built-in one instead: ", names(), ")"));
  }
  if (tool_text.empty()) return chosen;
  try {
    chosen.own_for_tools_ =
        std::make_shared<const jinja::Template>(tool_text, "the chat template tool_use");
  } catch (const InputError& e) {
    chosen.why_no_tools_ = e.what();
  }
  return chosen;
}

ChatTemplate ChatTemplate::choose(const Tokenizer& tokenizer, const std::string& name) {
  TemplateTokens tokens;
  if (tokenizer.bos() >= 0) tokens.bos = tokenizer.token_text(tokenizer.bos());
  if (tokenizer.eos() >= 0) tokens.eos = tokenizer.token_text(tokenizer.eos());
  tokens.others = tokenizer.named_tokens();
  for (std::int32_t id : tokenizer.stop_ids()) tokens.stops.push_back(tokenizer.token_text(id));
  return choose(tokenizer.chat_template(), name, tokens, tokenizer.tool_template());
}

std::vector<std::string> ChatTemplate::missing_markers(const Tokenizer& tokenizer) const {
  std::vector<std::string> missing;
  const Style* style = own_ ? nullptr : find(name_);
  if (!style) return missing;
  for (const std::string marker : {style->start, style->before, style->end})
    if (marker.starts_with('<') && marker.ends_with('>') && tokenizer.id_of(marker) < 0)
      missing.push_back(marker);
  return missing;
}

RenderedChat ChatTemplate::render(const std::vector<Message>& messages, bool ask,
                                  const OrderedJson* tools) const {
  check_messages(messages, own_ == nullptr);
  if (!own_) return render_built_in(messages, ask);
  RenderedChat chat = render_own(messages, tools, ask);
  if (!ask) find_assistant(messages, tools, chat);
  return chat;
}

RenderedChat ChatTemplate::render_built_in(std::span<const Message> messages,
                                           bool add_generation_prompt) const {
  const Style* style = find(name_);
  check(style != nullptr, "chat template ", name_, " is unknown");
  RenderedChat out;
  out.text = style->start;
  auto write_content = [&](std::string_view content) {
    const std::size_t begin = out.text.size();
    out.text += content;
    if (out.text.size() > begin) out.content.emplace_back(begin, out.text.size());
  };
  // `prefix`: a system text that the template puts into another's turn.
  auto turn = [&](const std::string& role, std::string_view fixed, const std::string* prefix,
                  std::string_view content) {
    const bool answers = role == "assistant";
    out.text += style->before + (answers ? style->assistant : role) + style->after;
    out.text += fixed;
    const std::size_t begin = out.text.size();
    if (prefix != nullptr) {
      write_content(*prefix);
      out.text += "\n\n";
    }
    write_content(style->trims ? strip(content) : content);
    out.text += style->end;
    if (answers) {
      out.assistant.emplace_back(begin, out.text.size());
      out.ranges_of_turn.push_back(1);
    }
    out.text += style->behind;
  };
  if (style->system != nullptr && messages[0].role != "system")
    turn("system", style->system, nullptr, "");
  const std::string* system = nullptr;
  if (style->merges_system) {
    if (messages[0].role == "system") {
      system = &messages[0].content;
      messages = messages.subspan(1);
    }
    for (std::size_t i = 0; i < messages.size(); ++i)
      if ((messages[i].role == "user") != (i % 2 == 0))
        throw InputError(concat("the template ", name_,
                                " wants user and assistant to alternate, the user first; a system "
                                "text may stand before them"));
  }
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const bool extended = style->system_always && i == 0 && messages[i].role == "system";
    turn(messages[i].role, extended ? style->system : "", i == 0 ? system : nullptr,
         messages[i].content);
  }
  if (add_generation_prompt || style->always_asks)
    out.text += style->generation != nullptr
                    ? std::string(style->generation)
                    : std::string(style->before) + style->assistant + style->after;
  return out;
}

// The variables are those that transformers gives, but strftime_now: a text must not depend on the
// day it is made. Templates that know the name may be missing write a fixed date.
RenderedChat ChatTemplate::render_own(std::span<const Message> messages, const OrderedJson* tools,
                                      bool ask) const {
  using jinja::Value;
  std::uint64_t size = tools != nullptr ? json_size(*tools) : 0;
  for (const Message& m : messages)
    size += m.content.size() + 1024 + (m.more ? json_size(*m.more) : 0);
  jinja::Budget inputs(16 * size + 1024, 8 * size + 1024);
  std::vector<Value> list;
  for (const Message& m : messages) list.push_back(message_value(m, std::ssize(list), inputs));
  jinja::Variables variables = {
      {"messages", jinja::make_list(std::move(list), inputs)},
      {"tools", tools != nullptr ? jinja::from_json(*tools, inputs, true, {nullptr, "tools"})
                                 : Value(jinja::None{})},
      {"documents", jinja::None{}},
      {"add_generation_prompt", ask}};
  if (!tokens_.bos.empty()) variables.emplace_back("bos_token", Value::text(tokens_.bos));
  if (!tokens_.eos.empty()) variables.emplace_back("eos_token", Value::text(tokens_.eos));
  for (const auto& [name, text] : tokens_.others) variables.emplace_back(name, Value::text(text));
  // A long chat may take longer, and write more.
  const jinja::Template& own = tools && own_for_tools_ ? *own_for_tools_ : *own_;
  jinja::Rendered rendered = own.render(variables, jinja::Template::kWork + 32 * size,
                                        jinja::Template::kBytes + 32 * size);
  return {std::move(rendered.text.s), std::move(rendered.text.marks),
          std::move(rendered.generated)};
}

// Where the last of `messages`, an assistant's turn, stands in `chat`, their rendering.
std::pair<std::size_t, std::size_t> ChatTemplate::last_turn(std::span<const Message> messages,
                                                            const OrderedJson* tools,
                                                            const RenderedChat& chat) const {
  std::string prompt;
  const std::string& text = chat.text;
  try {
    prompt = render_own(messages.first(messages.size() - 1), tools, true).text;
  } catch (const InputError&) {
    // Many templates look at the first message. Where there is none, the turn begins with its content.
    if (messages.size() > 1 || chat.content.empty()) throw;
    prompt = text.substr(0, chat.content.front().first);
  }
  if (!text.starts_with(prompt))
    throw InputError(concat("the chat template writes what stands before message ",
                            messages.size() - 1,
                            " otherwise once that is answered, and has no {% generation %}: which "
                            "tokens to train on can't be told (`template` uses a built-in one "
                            "instead: ",
                            names(), ")"));
  // The template wrote whatever follows the last byte of the turn's content.
  std::size_t from = prompt.size();
  if (!chat.content.empty()) from = std::max(from, chat.content.back().second);
  std::size_t end = std::string::npos, length = 0;
  for (const std::string& stop : tokens_.stops)
    if (const std::size_t at = text.find(stop, from); at < end) end = at, length = stop.size();
  // Without a stop token the turn ends with the last byte that is not white space.
  if (end == std::string::npos) return {prompt.size(), std::max(from, strip_right(text).size())};
  return {prompt.size(), end + length};
}

// Whether each of the assistant's turns has one stretch, which says what the turn does.
static bool has_one_each(std::span<const Message> messages, const RenderedChat& chat) {
  jinja::Budget budget(UINT64_MAX, UINT64_MAX);
  auto stretch = chat.assistant.begin();
  for (const Message& m : messages) {
    if (m.role != "assistant") continue;
    const std::string_view said = thoughts_and_said(m.content, m.role).second;
    if (said.empty() || stretch == chat.assistant.end()) return false;
    const auto [begin, end] = *stretch++;
    const std::string_view text = std::string_view(chat.text).substr(begin, end - begin);
    if (jinja::occurrences(text, said, 1, false, budget).empty()) return false;
  }
  return stretch == chat.assistant.end();
}

// Finds which of the stretches that {% generation %} encloses are whose: a turn's are those that come
// with it as the chat grows. Where it is plain, no turn costs a rendering of what precedes it.
void ChatTemplate::count_generated(std::span<const Message> messages, const OrderedJson* tools,
                                   RenderedChat& chat) const {
  if (has_one_each(messages, chat)) {
    chat.ranges_of_turn.assign(chat.assistant.size(), 1);
    return;
  }
  std::size_t before = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant") continue;
    const std::size_t now = i + 1 == messages.size()
                                ? chat.assistant.size()
                                : render_own(messages.first(i + 1), tools, false).assistant.size();
    if (now < before) break;
    chat.ranges_of_turn.push_back(now - before);
    before = now;
  }
  if (before != chat.assistant.size())
    throw InputError(concat("which turns the chat template's ", chat.assistant.size(),
                            " {% generation %} stretches belong to can't be told: as the chat "
                            "grows, earlier turns have other numbers of them"));
}

// Puts each assistant turn's range into chat.assistant, unless {% generation %} has done so.
void ChatTemplate::find_assistant(std::span<const Message> messages, const OrderedJson* tools,
                                  RenderedChat& chat) const {
  std::vector<std::size_t> turns;
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (messages[i].role == "assistant") turns.push_back(i);
  if (!chat.assistant.empty()) return count_generated(messages, tools, chat);
  for (std::size_t i : turns) {
    const auto said = messages.first(i + 1);
    const bool last = said.size() == messages.size();
    const RenderedChat answered = last ? chat : render_own(said, tools, false);
    const auto range = last_turn(said, tools, answered);
    if (chat.text.compare(0, range.second, answered.text, 0, range.second) != 0) {
      chat.assistant.clear();
      chat.rewrites = true;
      return;
    }
    chat.assistant.push_back(range);
  }
  chat.ranges_of_turn.assign(turns.size(), 1);
}

RenderedChat ChatTemplate::render_turn(const std::vector<Message>& messages, std::size_t i,
                                       const OrderedJson* tools) const {
  require(i < messages.size() && messages[i].role == "assistant", "render_turn: messages[", i,
          "] is no turn of the assistant");
  check_messages(messages, own_ == nullptr);
  const auto said = std::span(messages).first(i + 1);
  RenderedChat chat = own_ ? render_own(said, tools, false) : render_built_in(said, false);
  if (own_ && !chat.assistant.empty()) count_generated(said, tools, chat);
  if (chat.assistant.empty())
    chat.assistant = {last_turn(said, tools, chat)};
  else
    chat.assistant.erase(
        chat.assistant.begin(),
        chat.assistant.end() - static_cast<std::ptrdiff_t>(chat.ranges_of_turn.back()));
  if (chat.assistant.empty()) throw InputError(nothing_generated(i));
  chat.ranges_of_turn = {chat.assistant.size()};
  return chat;
}

std::string nothing_generated(std::size_t message) {
  return concat("the chat template encloses nothing of message ", message,
                " in {% generation %}: none of it would be trained");
}

std::vector<std::string> marker_warnings(const Tokenizer& tokenizer,
                                         const std::optional<std::string>& name) {
  std::vector<std::string> lines;
  if (!name) return lines;
  for (const std::string& marker :
       ChatTemplate::choose(tokenizer, *name).missing_markers(tokenizer))
    lines.push_back(concat("warning: `template` ", *name, " writes ", marker,
                           ", which is no token of the model: it is read as its letters"));
  return lines;
}

Tokenizer::Encoding encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat) {
  Tokenizer::Encoding e = tokenizer.encode_with_offsets(chat.text, chat.content);
  if (e.ids.size() > 1 && tokenizer.bos() >= 0 && e.ids[0] == tokenizer.bos() &&
      e.ids[1] == tokenizer.bos())
    throw InputError(concat("the chat template begins the text with ",
                            printable(tokenizer.token_text(tokenizer.bos())),
                            " twice: correct the template, or pass `template`"));
  return e;
}

}  // namespace lk
