// GGUF v3 writer: metadata and tensors, streamed. Layout: ggml's docs/gguf.md.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "io/durable.h"
#include "io/gguf_parse.h"
#include "io/tensor_writer.h"

namespace lk {

// Make metadata values of the types that writers need.
GgufValue gguf_u32(std::uint32_t v);
GgufValue gguf_f32(float v);
GgufValue gguf_bool(bool v);
GgufValue gguf_string(std::string v);
GgufValue gguf_strings(std::vector<std::string> v);
GgufValue gguf_ints(const std::vector<std::int32_t>& v);  // an array of i32
GgufValue gguf_floats(const std::vector<float>& v);

// Writes the header at once, then waits for the tensors' bytes. Names have at most 63 bytes, shapes
// rank 1 to 4 (ggml lists dimensions fastest first). Throws IoError; Error for what can't be
// written or bytes that don't add up.
class GgufWriter : public TensorWriter {
 public:
  using Metadata = std::vector<std::pair<std::string, GgufValue>>;

  // general.alignment must not be among the keys: it is 32, the default.
  GgufWriter(const std::string& path, const Metadata& metadata, std::vector<EncodedTensor> tensors);
  // The size in bytes that the whole file will have.
  static std::uint64_t file_bytes(const Metadata& metadata,
                                  const std::vector<EncodedTensor>& tensors);
  void append(const void* data, std::size_t bytes) override;
  void commit() override;

 private:
  DurableFile file_;
  std::vector<EncodedTensor> tensors_;
  std::size_t next_ = 0;    // the tensor being written
  std::uint64_t left_ = 0;  // bytes it still lacks
};

}  // namespace lk
