// Any file: GgufFile throws InputError, or its tensors lie in the file without overlap, each can be
// read (or is of a type that is not read), and every typed getter gives a value or an InputError
// for every key.
#include <algorithm>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "io/gguf_parse.h"
#include "io/input_file.h"
#include "memory_file.h"
#include "tensor/error.h"

namespace {

template <class F>
void value_or_input_error(F&& f) {
  try {
    f();
  } catch (const lk::InputError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using lk::fuzz::require;
  const lk::fuzz::MemoryFile input(data, size);
  value_or_input_error([&] {
    const lk::InputFile file(input.path());
    const lk::GgufHeader header = lk::parse_gguf(file);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const auto& [name, t] : header.tensors) {
      require(t.bytes <= size && t.offset <= size - t.bytes);
      require(static_cast<std::uint64_t>(t.shape.numel()) / t.type->block_values *
                  t.type->block_bytes ==
              t.bytes);
      ranges.emplace_back(t.offset, t.offset + t.bytes);
    }
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
      require(ranges[i - 1].second <= ranges[i].first);

    const lk::GgufFile reader(input.path());
    for (const std::string& name : reader.names())
      value_or_input_error([&] {
        const lk::Shape shape = reader.shape(name);
        std::vector<float> values(static_cast<std::size_t>(shape.numel()));
        reader.read_rows(name, 0, shape.rows(), values.data());
      });
    for (const auto& [key, value] : header.values) {
      value_or_input_error([&, &k = key] { reader.get_int(k, INT64_MIN, INT64_MAX); });
      value_or_input_error([&, &k = key] { reader.get_float(k); });
      value_or_input_error([&, &k = key] { reader.get_bool_or(k, false); });
      value_or_input_error([&, &k = key] { reader.get_string(k); });
      value_or_input_error([&, &k = key] { reader.get_strings(k); });
      value_or_input_error([&, &k = key] { reader.get_ints(k); });
      value_or_input_error([&, &k = key] { reader.get_floats(k); });
    }
  });
  return 0;
}
