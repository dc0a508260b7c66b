// Reads rows of a stored tensor and streams them through a block decoder. Both file formats use it.
#pragma once

#include <cstdint>
#include <string>

#include "io/input_file.h"
#include "tensor/shape.h"

namespace lk {

struct BlockFormat {
  std::uint32_t values, bytes;  // per block; `values` divides the shape's last dimension
  void (*decode)(const std::uint8_t* blocks, std::int64_t n_blocks, float* dst);
};

// Reads rows [begin, end) of the tensor that lies at `offset` of the file, as F32; a vector or
// scalar is one row. The header's parser has checked that the tensor is inside the file. Holds 256
// KiB. Throws InputError naming file and tensor; Error if the rows are not the tensor's.
void read_block_rows(const InputFile& file, const std::string& name, const Shape& shape,
                     std::uint64_t offset, const BlockFormat& format, std::int64_t begin,
                     std::int64_t end, float* dst);
// Reads the blocks of rows [begin, end) as they are stored. Throws as read_block_rows() does.
void read_stored_rows(const InputFile& file, const std::string& name, const Shape& shape,
                      std::uint64_t offset, const BlockFormat& format, std::int64_t begin,
                      std::int64_t end, std::uint8_t* dst);

}  // namespace lk
