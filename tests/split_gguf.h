// A GGUF file of F32 tensors in two parts.
#pragma once

#include <string>
#include <vector>

#include "io/ggml_encode.h"
#include "io/gguf.h"
#include "io/gguf_write.h"
#include "tensor_file.h"

namespace lk::test {

// Writes `stem`-00001-of-00002.gguf, with the metadata and the first tensors, and the second part beside
// it. Returns the path of the first.
inline std::string split_gguf(const std::string& path, const std::string& stem) {
  const GgufFile whole(path);
  const std::vector<std::string> names = whole.names();
  const auto half = names.begin() + std::ssize(names) / 2;
  const auto write = [&](std::uint32_t no, GgufWriter::Metadata metadata,
                         const std::vector<std::string>& own) {
    metadata.emplace_back("split.no", gguf_u32(no));
    metadata.emplace_back("split.count", gguf_u32(2));
    std::vector<EncodedTensor> tensors;
    for (const std::string& name : own)
      tensors.push_back({name, whole.shape(name), find_ggml_encoder("F32")});
    const std::string part = concat(stem, "-0000", no + 1, "-of-00002.gguf");
    GgufWriter writer(part, metadata, tensors);
    for (const std::string& name : own) {
      const std::vector<float> values = read_all(whole, name);
      writer.append(values.data(), values.size() * sizeof(float));
    }
    writer.commit();
    return part;
  };
  write(1, {}, {half, names.end()});
  return write(0, whole.metadata(), {names.begin(), half});
}

}  // namespace lk::test
