// Parses and checks the header of a safetensors file, and makes the header that a writer puts
// there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/input_file.h"
#include "tensor/shape.h"

namespace lk {

struct SafetensorsDtype {
  const char* name;
  std::uint32_t bits;
  // The decoder to F32, null for types that are not read. A block is one value.
  void (*decode)(const std::uint8_t* src, std::int64_t n, float* dst);
};

struct SafetensorsTensor {
  std::vector<std::uint64_t> dims;  // rank up to 8: a file may hold what we do not read
  const SafetensorsDtype* dtype = nullptr;
  std::uint64_t offset = 0;  // from the start of the file
  std::uint64_t bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::unordered_map<std::string, SafetensorsTensor> tensors;
};

// Throws InputError naming file, tensor, offset and rule. Stricter than the reference: names and
// metadata keys unique, at most 8 dimensions of at most 2^40, at most 200,000 tensors in at most 32
// MiB of header. As lenient: white space before '{', unknown fields, tensors without elements,
// scalars, any name.
SafetensorsHeader parse_safetensors_header(const InputFile& file);

}  // namespace lk
