// Parses and checks the header of a GGUF file: metadata, and where each tensor's bytes lie.
// GgufFile reads tensors by it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/ggml_blocks.h"
#include "io/input_file.h"
#include "tensor/shape.h"

namespace lk {

enum class GgufType : std::uint32_t {
  U8,
  I8,
  U16,
  I16,
  U32,
  I32,
  F32,
  Bool,
  String,
  Array,
  U64,
  I64,
  F64
};
const char* gguf_type_name(GgufType type);
bool is_integer(GgufType type);

// One metadata value. Numbers keep the bytes of the file; `items` is 1 but for arrays.
struct GgufValue {
  GgufType type{};  // of the value, or of an array's items
  bool is_array = false;
  std::uint64_t items = 1;
  std::string bytes;                 // numbers and bools, or one string
  std::vector<std::string> strings;  // an array of strings
};

struct GgufTensor {
  Shape shape;  // row-major
  const GgmlType* type = nullptr;
  std::uint64_t offset = 0;  // from the start of the file
  std::uint64_t bytes = 0;
};

struct GgufHeader {
  std::unordered_map<std::string, GgufValue> values;
  std::unordered_map<std::string, GgufTensor> tensors;
};

// Reads the header of `file`. Throws InputError naming file, key or tensor, offset and rule. Checks
// magic, version (2, 3), counts, types, unique non-empty keys and unique names, alignment, whole
// blocks, no number that wraps, each tensor where the sum of those before it says, and the file
// ending with the last tensor's padding.
GgufHeader parse_gguf(const InputFile& file);

}  // namespace lk
