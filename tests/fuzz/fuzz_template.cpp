// Any text as a chat template: it is refused, or it prints valid UTF-8 within its budget, identical
// each time, with marks that lie in the text in order.
#include "io/utf8.h"
#include "memory_file.h"
#include "tensor/error.h"
#include "text/jinja/template.h"

namespace {

using namespace lk::jinja;

Variables conversation() {
  Budget budget(1 << 16, 1 << 16);
  std::vector<Value> messages;
  for (const char* role : {"system", "user", "assistant"}) {
    Text content;
    content.append_marked("Caf\xC3\xA9, <b> ");
    messages.push_back(make_dict(
        {{"role", Value::text(role)}, {"content", Value::text(std::move(content))}}, budget));
  }
  return {{"messages", make_list(std::move(messages), budget)},
          {"tools", None{}},
          {"add_generation_prompt", true},
          {"bos_token", Value::text("<s>")}};
}

void check_ranges(const Marks& ranges, std::size_t size) {
  std::size_t last = 0;
  for (const auto& [begin, end] : ranges) {
    lk::fuzz::require(begin >= last && begin <= end && end <= size);
    last = end;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  try {
    const Template chat(source, "input");
    constexpr std::uint64_t work = 1 << 20, bytes = 1 << 20;
    const Rendered r = chat.render(conversation(), work, bytes);
    lk::fuzz::require(r.text.s.size() <= bytes);
    lk::fuzz::require(lk::utf8_valid_prefix(r.text.s) == r.text.s.size());
    check_ranges(r.text.marks, r.text.s.size());
    check_ranges(r.generated, r.text.s.size());
    lk::fuzz::require(chat.render(conversation(), work, bytes).text.s == r.text.s);
  } catch (const lk::InputError&) {
  }
  return 0;
}
