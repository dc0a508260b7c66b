// TensorReader: named tensors of a model file, read row by row as F32, whatever their stored type.
// GgufFile and the readers of io/safetensors.h implement it, so that loading knows no file format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/ggml_type.h"
#include "tensor/shape.h"

namespace lk {

class InputFile;

class TensorReader {
 public:
  virtual ~TensorReader() = default;
  virtual const std::string& path() const = 0;  // for messages
  // Of the file that holds the tensor, where there are several; path() if none does.
  virtual const std::string& path_of(const std::string& name) const {
    static_cast<void>(name);
    return path();
  }
  // The open files that hold the tensors, sorted by name: whoever hashes them hashes what is read.
  virtual std::vector<const InputFile*> files() const = 0;
  virtual std::vector<std::string> names() const = 0;  // sorted
  virtual bool has(const std::string& name) const = 0;
  // Row-major shape as PyTorch shows it ([out, in] for a linear layer). Throws InputError if
  // absent.
  virtual Shape shape(const std::string& name) const = 0;
  virtual std::string stored_type(const std::string& name) const = 0;  // "F32", "Q4_1", ...
  // Throws InputError if the tensor is of a type that read_rows() can't read.
  virtual void check_readable(const std::string& name) const = 0;
  // Reads rows [begin, end) (a vector counts as one row), dequantised to F32. Streams: holds no
  // more than the rows asked for. Several threads may read at once. Throws InputError on a short
  // read, naming the file and the tensor.
  virtual void read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                         float* dst) const = 0;
  // The type of the tensor's blocks, null if it is not quantised.
  virtual const GgmlType* quantised_type(const std::string& name) const {
    static_cast<void>(name);
    return nullptr;
  }
  // The type of the tensor's numbers if they are stored as this program holds them: F32 or BF16.
  virtual std::optional<DType> plain_type(const std::string& name) const {
    static_cast<void>(name);
    return std::nullopt;
  }
  // Reads rows [begin, end) of a quantised or plain tensor as they are stored: blocks of the type,
  // or numbers. `dst` has room for them. Throws as read_rows().
  virtual void read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                           std::uint8_t* dst) const = 0;
};

}  // namespace lk
