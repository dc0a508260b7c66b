// Would catch: a chat that differs by one byte from what the model's own template prints, a loss
// taken on the wrong bytes or guessed.
#include "text/chat_template.h"

#include "harness.h"
#include "io/json.h"
#include "template_chats.h"
#include "tensor/error.h"

using namespace lk;
using namespace lk::test;

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

TEST_CASE("a model's own template is rendered, and trains on what its built-in twin trains on") {
  int texts = 0;
  for (const Json& entry : golden().at("templates")) {
    if (!entry.contains("text")) continue;
    ++texts;
    const std::string name = entry.at("name").get<std::string>();
    TemplateTokens tokens;
    if (name == "zephyr") tokens = {"<s>", "</s>", {"</s>"}};
    if (name.starts_with("llama3")) tokens = {"<|begin_of_text|>", "<|eot_id|>", {"<|eot_id|>"}};
    if (tokens.stops.empty()) tokens.stops = {"<|endoftext|>", "<|im_end|>"};
    const std::string source = entry.at("text").get<std::string>();
    std::string crlf;
    for (char c : source) crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
    const ChatTemplate own = ChatTemplate::choose(source, "", tokens);
    const ChatTemplate other = ChatTemplate::choose(crlf, "", tokens);
    CHECK(own.name() == "own");
    const Json& chats = golden().at("chats");
    for (std::size_t i = 0; i < chats.size(); ++i) {
      const auto messages = messages_of(chats.at(i));
      const auto want = entry.at("rendered").at(2 * i + 1).get<std::string>();
      CHECK_MESSAGE(own.render(messages, true).text == want, name, " chat ", i);
      CHECK_MESSAGE(other.render(messages, true).text == want, name, " chat ", i);
      if (messages[0].role == "assistant") continue;  // below
      const RenderedChat got = own.render(messages, false);
      const RenderedChat twin = ChatTemplate::choose("", name).render(messages, false);
      CHECK_MESSAGE(got.text == twin.text, name, " chat ", i);
      CHECK_MESSAGE(got.content == twin.content, name, " chat ", i);
      CHECK_MESSAGE(got.assistant == twin.assistant, name, " chat ", i);
    }
  }
  CHECK(texts >= 7);
}

TEST_CASE("what is trained of each family's own template: the answers with their end tokens") {
  const std::vector<Message> chat = {
      {"user", "Hi </s>"}, {"assistant", " Yes "}, {"user", "So?"}, {"assistant", "<|im_end|>No"}};
  const TemplateTokens tokens = {
      "<s>", "</s>", {"</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"}};
  auto trained = [&](const std::string& name, const std::vector<Message>& messages) {
    const RenderedChat r =
        ChatTemplate::choose(family_template(name), "", tokens).render(messages, false);
    return cut(r, r.assistant);
  };
  CHECK(trained("chatml-generation", chat) == Texts{" Yes <|im_end|>", "<|im_end|>No<|im_end|>"});
  CHECK(trained("llama2", chat) == Texts{" Yes </s>", " <|im_end|>No </s>"});
  CHECK(trained("llama3.2", chat) == Texts{"Yes<|eot_id|>", "<|im_end|>No<|eot_id|>"});
  CHECK(trained("mistral1", chat) == Texts{" Yes </s>", "<|im_end|>No</s>"});
  CHECK(trained("mistral3", chat) == Texts{" Yes</s>", " <|im_end|>No</s>"});
  CHECK(trained("qwen2.5", chat) == Texts{" Yes <|im_end|>", "<|im_end|>No<|im_end|>"});
  CHECK(trained("gemma", chat) == Texts{"Yes<end_of_turn>", "<|im_end|>No<end_of_turn>"});
  CHECK(trained("gemma3", chat) == Texts{"Yes<end_of_turn>", "<|im_end|>No<end_of_turn>"});
  CHECK(trained("qwen3", {chat[0], chat[3]}) ==
        Texts{"<think>\n\n</think>\n\n<|im_end|>No<|im_end|>"});
  auto refused = [&](const std::string& name, const std::vector<Message>& messages) {
    try {
      trained(name, messages);
    } catch (const InputError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  // Mistral v3 moves the system text.
  CHECK(refused("mistral3", {{"system", "s"}, chat[0], chat[1]}).find("can't be told") !=
        std::string::npos);
  CHECK(refused("gemma", {{"user", "a"}, {"user", "b"}}).find("must alternate") !=
        std::string::npos);
}

TEST_CASE("a chat that begins with the assistant, by a template that looks at its first message") {
  const ChatTemplate own = ChatTemplate::choose(
      "{{ pad_token }}{% if messages[0].role == 'system' %}S{% else %}none{% endif %}"
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
      "",
      {.bos = "",
       .eos = "<|im_end|>",
       .stops = {"<|im_end|>"},
       .others = {{"pad_token", "<pad>"}}});
  const RenderedChat chat =
      own.render({{"assistant", "Welcome!"}, {"user", "Hi"}, {"assistant", "Yo"}}, false);
  REQUIRE(chat.assistant.size() == 2);
  const auto trained = [&](std::size_t i) {
    const auto [begin, end] = chat.assistant[i];
    return chat.text.substr(begin, end - begin);
  };
  CHECK(chat.text.starts_with("<pad>none<|im_start|>assistant\nWelcome!"));
  CHECK(trained(0) == "Welcome!<|im_end|>");
  CHECK(trained(1) == "Yo<|im_end|>");
}

TEST_CASE("chats with tools have the template tool_use, where the model has one") {
  const ChatTemplate both = ChatTemplate::choose("plain {{ messages[0].content }}", "", {},
                                                 "{{ tools[0].name }} {{ messages[0].content }}");
  const OrderedJson tools = OrderedJson::parse(R"([{"name": "clock"}])");
  CHECK(both.render({{"user", "Hi"}}, true, &tools).text == "clock Hi");
  CHECK(both.render({{"user", "Hi"}}, true).text == "plain Hi");
  // One that is not read is told where it is wanted, and harms no other chat.
  CHECK(both.why_no_tools().empty());
  const ChatTemplate unread = ChatTemplate::choose("plain", "", {}, "{% include 'x' %}");
  CHECK(unread.render({{"user", "Hi"}}, true).text == "plain");
  CHECK(unread.why_no_tools().find("the chat template tool_use") != std::string::npos);
}

TEST_CASE("a built-in template's markers that are no tokens of the model are named") {
  const auto gpt2 = Tokenizer::from_folder(std::string(LK_TEST_DATA) + "/golden/text/gpt2");
  const auto missing = [&](const char* name) {
    return ChatTemplate::choose("", name).missing_markers(*gpt2);
  };
  CHECK(missing("chatml").empty());
  CHECK(missing("llama3") == Texts{"<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"});
  CHECK(missing("gemma") == Texts{"<bos>", "<start_of_turn>", "<end_of_turn>"});
  CHECK(missing("zephyr") == Texts{"</s>"});  // <|user|> is letters in its own model
}

TEST_CASE("a turn of a template that rewrites earlier turns is told where it is the last") {
  // Qwen3 takes the thoughts out of all answers but the last.
  const std::vector<Message> chat = {{"user", "Hi"},
                                     {"assistant", "<think>\nhm\n</think>\n\nYes"},
                                     {"user", "So?"},
                                     {"assistant", "No"}};
  const ChatTemplate qwen3 =
      ChatTemplate::choose(family_template("qwen3"), "", {"", "<|im_end|>", {"<|im_end|>"}});
  const RenderedChat whole = qwen3.render(chat, false);
  CHECK(whole.rewrites);
  CHECK(whole.assistant.empty());
  CHECK(whole.text.find("hm") == std::string::npos);
  const RenderedChat first = qwen3.render_turn(chat, 1), second = qwen3.render_turn(chat, 3);
  CHECK(cut(first, first.assistant) == Texts{"<think>\nhm\n</think>\n\nYes<|im_end|>"});
  CHECK(cut(second, second.assistant) == Texts{"<think>\n\n</think>\n\nNo<|im_end|>"});
  CHECK(first.text == qwen3.render({chat[0], chat[1]}, false).text);
  CHECK(second.text == whole.text);
  // A template that rewrites nothing has the turn where the whole chat has it.
  const ChatTemplate chatml = ChatTemplate::choose("", "chatml");
  const RenderedChat all = chatml.render(chat, false);
  CHECK_FALSE(all.rewrites);
  for (std::size_t i : {1, 3})
    CHECK(chatml.render_turn(chat, i).assistant == decltype(all.assistant){all.assistant[i / 2]});
}

TEST_CASE("the built-in template gemma prints what Gemma's own prints") {
  const ChatTemplate own = ChatTemplate::choose(family_template("gemma3"), "",
                                                {"<bos>", "<eos>", {"<eos>", "<end_of_turn>"}});
  const ChatTemplate built_in = ChatTemplate::choose("", "gemma");
  auto render = [](const ChatTemplate& chat, const std::vector<Message>& messages, bool ask) {
    try {
      return chat.render(messages, ask);
    } catch (const InputError&) {
      return RenderedChat{"refused", {}, {}};
    }
  };
  int refused = 0;
  for (int i = 0; i < template_golden().at("n_chats").get<int>(); ++i) {
    const std::vector<Message> messages = template_chat(i);
    for (bool ask : {false, true}) {
      const RenderedChat want = render(own, messages, ask), got = render(built_in, messages, ask);
      CHECK_MESSAGE(got.text == want.text, "chat ", i);
      CHECK_MESSAGE(got.content == want.content, "chat ", i);
      if (!ask) CHECK_MESSAGE(got.assistant == want.assistant, "chat ", i);
      refused += got.text == "refused";
    }
  }
  CHECK(refused > 0);
  CHECK(refused < template_golden().at("n_chats").get<int>());
}

TEST_CASE("a template that can't be used is refused with its line and what to pass instead") {
  auto message = [](const std::string& text, const std::string& name) {
    try {
      ChatTemplate::choose(text, name).render({{"user", "x"}}, true);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  for (const auto& [text, name] :
       {std::pair{"{% include 'x' %}", ""}, {"", ""}, {"", "nonsense"}}) {
    const std::string said = message(text, name);
    CHECK_MESSAGE(said.find("`template`") != std::string::npos, said);
    CHECK_MESSAGE(said.find("chatml") != std::string::npos, said);
    CHECK_MESSAGE(said.find("llama3") != std::string::npos, said);
  }
  CHECK(message("\n{{ cycler.__init__.__globals__ }}", "").find("line 2") != std::string::npos);
  // A name wins over whatever the model brings.
  CHECK(ChatTemplate::choose("{{ anything", "qwen2").name() == "qwen2");
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
  Message large{"user", "x"};
  large.more = std::make_shared<const OrderedJson>(OrderedJson{{"name", {{"n", UINT64_MAX}}}});
  CHECK_THROWS_WITH_AS(ChatTemplate::choose("x").render({{"user", "x"}, large}, true),
                       doctest::Contains("messages[1].name.n: the integer 1844"), InputError);
}
