// Conversations for the chat templates' tests: those that tests/golden/make_template_golden.py
// draws.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "io/gguf.h"
#include "io/json.h"
#include "text/chat_template.h"
#include "text/jinja/template.h"

namespace lk::test {

inline const std::string kTemplateData = std::string(LK_TEST_DATA) + "/golden/text/";

inline const Json& template_golden() {
  static const Json golden = read_json(kTemplateData + "templates.json");
  return golden;
}

inline std::vector<Message> template_chat(int number) {
  static const auto pieces = template_golden().at("pieces").get<std::vector<std::string>>();
  static const std::string roles[] = {"system", "user", "assistant"};
  std::uint64_t state = 77 + static_cast<std::uint64_t>(number);
  auto draw = [&](std::uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  draw(2);
  std::vector<Message> messages;
  if (draw(3) == 0) messages.push_back({"system", pieces[draw(pieces.size())]});
  const std::size_t n = 1 + draw(6);
  for (std::size_t i = 0; i < n; ++i) {
    std::string role = roles[1 + i % 2], content;
    if (draw(16) == 0) role = roles[draw(3)];
    for (std::size_t k = draw(4); k > 0; --k) content += pieces[draw(pieces.size())];
    messages.push_back({role, content});
  }
  return messages;
}

inline jinja::Variables chat_variables(const std::vector<Message>& messages, bool ask) {
  using jinja::Value;
  jinja::Budget budget(1 << 24, 1 << 24);
  std::vector<Value> list;
  for (const Message& m : messages)
    list.push_back(jinja::make_dict(
        {{"role", Value::text(m.role)}, {"content", Value::text(m.content)}}, budget));
  return {{"messages", jinja::make_list(std::move(list), budget)},
          {"tools", jinja::None{}},
          {"documents", jinja::None{}},
          {"add_generation_prompt", ask},
          {"bos_token", Value::text("<s>")},
          {"eos_token", Value::text("</s>")}};
}

// The text of a template of the golden file; empty for the base model's, which is not stored here.
inline std::string family_template(const std::string& name) {
  if (name == "smollm2-gguf") {
    const char* env = std::getenv("LORIKEET_SMOLLM2");
    const std::string path =
        env != nullptr ? env
                       : std::string(LK_TEST_DATA) + "/../models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!std::filesystem::exists(path)) return "";
    return GgufFile(path).get_string("tokenizer.chat_template");
  }
  std::ifstream in(kTemplateData + "templates/" + name + ".jinja", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace lk::test
