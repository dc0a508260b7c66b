// TensorWriter: a model file being written, tensor after tensor. GgufWriter and SafetensorsWriter
// implement it, so that code that computes values knows no file format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "io/ggml_encode.h"
#include "tensor/shape.h"

namespace lk {

// A tensor to be written, and the type to write it as.
struct EncodedTensor {
  std::string name;
  Shape shape;  // row-major, whole blocks a row
  const StorageType* type;
  std::uint64_t bytes() const {
    return static_cast<std::uint64_t>(shape.numel()) / type->block_values * type->block_bytes;
  }
};

class TensorWriter {
 public:
  virtual ~TensorWriter() = default;
  // Appends encoded bytes, in the order of the tensors that the writer was made for; the writer
  // pads. Throws IoError; Error for more bytes than the tensor has.
  virtual void append(const void* data, std::size_t bytes) = 0;
  // Puts the file in place, durably (see DurableFile). Until then there is none.
  virtual void commit() = 0;
};

}  // namespace lk
