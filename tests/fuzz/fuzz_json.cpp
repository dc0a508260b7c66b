// Any text: parse_json throws InputError, or what it returns equals nlohmann's reading of the same
// text and comes back from its own dump.
#include "io/json.h"
#include "memory_file.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using lk::Json;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Json value;
  try {
    value = lk::parse_json(text, "input");
  } catch (const lk::InputError&) {
    return 0;
  }
  lk::fuzz::require(value == Json::parse(text));
  lk::fuzz::require(value == lk::parse_json(value.dump(), "dump"));
  return 0;
}
