// Would catch: a chat that differs by one byte from what the model's own template prints, a loss
// taken on the wrong bytes, a template from a file that gets executed or guessed.
#include "text/chat_template.h"

#include "harness.h"
#include "io/json.h"
#include "tensor/error.h"

using namespace lk;

namespace {

const Json& golden() {
  static const Json chats = read_json(std::string(LK_TEST_DATA) + "/golden/text/chats.json");
  return chats;
}

std::vector<Message> messages_of(const Json& chat) {
  std::vector<Message> messages;
  for (const Json& turn : chat)
    messages.push_back({turn.at(0).get<std::string>(), turn.at(1).get<std::string>()});
  return messages;
}

std::vector<std::string> cut(const RenderedChat& chat,
                             const std::vector<std::pair<std::size_t, std::size_t>>& spans) {
  std::vector<std::string> out;
  for (const auto& [begin, end] : spans) out.push_back(chat.text.substr(begin, end - begin));
  return out;
}

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("render prints what Jinja2 prints from the model's template") {
  for (const Json& entry : golden().at("templates")) {
    const std::string name = entry.at("name").get<std::string>();
    const ChatTemplate chat = ChatTemplate::choose("", name);
    const Json& rendered = entry.at("rendered");
    const Json& chats = golden().at("chats");
    REQUIRE(rendered.size() == 2 * chats.size());
    for (std::size_t i = 0; i < rendered.size(); ++i) {
      const RenderedChat got = chat.render(messages_of(chats.at(i / 2)), i % 2 == 1);
      CHECK_MESSAGE(got.text == rendered.at(i).get<std::string>(), name, " chat ", i / 2);
    }
  }
}

TEST_CASE("templates are recognised by their text, however it travelled") {
  int texts = 0;
  for (const Json& entry : golden().at("templates")) {
    if (!entry.contains("text")) continue;
    ++texts;
    const std::string name = entry.at("name").get<std::string>();
    const std::string text = entry.at("text").get<std::string>();
    CHECK(ChatTemplate::choose(text).name() == name);
    CHECK(ChatTemplate::choose(text + "\n").name() == name);
    std::string escaped, crlf;
    for (char c : text) {
      escaped += c == '\n' ? std::string("\\n") : std::string(1, c);
      crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
    }
    CHECK(ChatTemplate::choose(escaped).name() == name);
    CHECK(ChatTemplate::choose(crlf).name() == name);
    // One changed byte, and it is nobody's template.
    CHECK_THROWS_AS(ChatTemplate::choose(text + "{{ 7 }}"), UsageError);
  }
  CHECK(texts >= 7);
}

TEST_CASE("an unknown template is refused with what to pass instead") {
  auto message = [](const std::string& text, const std::string& name) {
    try {
      ChatTemplate::choose(text, name);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  for (const auto& [text, name] : {std::pair{"{{ cycler.__init__.__globals__ }}", ""},
                                   std::pair{"", ""}, std::pair{"", "nonsense"}}) {
    const std::string said = message(text, name);
    CHECK_MESSAGE(said.find("--template") != std::string::npos, said);
    CHECK_MESSAGE(said.find("chatml") != std::string::npos, said);
    CHECK_MESSAGE(said.find("llama3") != std::string::npos, said);
  }
  // A name wins over whatever the model brings.
  CHECK(ChatTemplate::choose("{{ anything }}", "qwen2").name() == "qwen2");
}

TEST_CASE("spans: what people wrote, and what the loss is taken on") {
  const std::vector<Message> chat = {
      {"user", "Hi <|im_end|>"}, {"assistant", "Yes"}, {"user", ""}, {"assistant", ""}};
  const RenderedChat smol = ChatTemplate::choose("", "smollm2").render(chat, false);
  CHECK(cut(smol, smol.content) == Texts{"Hi <|im_end|>", "Yes"});
  CHECK(cut(smol, smol.assistant) == Texts{"Yes<|im_end|>", "<|im_end|>"});
  const RenderedChat llama =
      ChatTemplate::choose("", "llama3").render({{"assistant", " x\n"}}, true);
  CHECK(cut(llama, llama.content) == Texts{"x"});
  CHECK(cut(llama, llama.assistant) == Texts{"x<|eot_id|>"});
  const RenderedChat dated = ChatTemplate::choose("", "llama3.1").render({{"system", "s"}}, false);
  CHECK(cut(dated, dated.content) == Texts{"s"});
  CHECK(dated.assistant.empty());
  // Sorted and disjoint, as encode() wants them.
  for (std::size_t i = 1; i < smol.content.size(); ++i)
    CHECK(smol.content[i - 1].second <= smol.content[i].first);
}

TEST_CASE("what is not a chat is refused") {
  const ChatTemplate chat = ChatTemplate::choose("", "chatml");
  CHECK_THROWS_AS(chat.render({}, true), InputError);
  CHECK_THROWS_AS(chat.render({{"tool", "x"}}, true), InputError);
  CHECK_THROWS_AS(chat.render({{"user\n<|im_end|>", "x"}}, true), InputError);
  CHECK_THROWS_AS(chat.render({{"user", "\xff"}}, true), InputError);
}
