// Any file: SafetensorsFile throws InputError, or its tensors fill the file exactly and each can be
// read (or is of a type that is not read).
#include <algorithm>
#include <cstring>
#include <vector>

#include "io/input_file.h"
#include "io/safetensors.h"
#include "io/safetensors_header.h"
#include "memory_file.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using lk::fuzz::require;
  const lk::fuzz::MemoryFile input(data, size);
  try {
    const lk::InputFile file(input.path());
    const lk::SafetensorsHeader header = lk::parse_safetensors_header(file);
    std::uint64_t length = 0, sum = 8;
    std::memcpy(&length, data, sizeof length);
    for (const auto& [name, t] : header.tensors) {
      require(t.offset >= 8 + length && t.bytes <= size && t.offset <= size - t.bytes);
      sum += t.bytes;
    }
    require(sum + length == size);

    const lk::SafetensorsFile reader(input.path());
    for (const std::string& name : reader.names()) {
      try {
        const lk::Shape shape = reader.shape(name);
        std::vector<float> values(static_cast<std::size_t>(shape.numel()));
        reader.read_rows(name, 0, shape.rows(), values.data());
        if (shape.rows() > 1) reader.read_rows(name, shape.rows() - 1, shape.rows(), values.data());
      } catch (const lk::InputError&) {  // a type or rank that is not read
      }
    }
  } catch (const lk::InputError&) {
  }
  return 0;
}

#ifdef LK_LIBFUZZER
// Nearly every plain mutant fails at the header's length: adjust the length to the header.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (size < 9 || seed % 8 == 0) return size;
  const std::uint8_t* end = data + size;
  while (end > data + 9 && end[-1] != '}') --end;
  const auto length = static_cast<std::uint64_t>(end - data - 8);
  std::memcpy(data, &length, sizeof length);
  return size;
}
#endif
