#include "io/block_reader.h"

#include <algorithm>
#include <vector>

#include "io/input_file.h"
#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

namespace {

// The range of blocks that rows [begin, end) take up. Its products can't overflow: their factors
// were checked against the file's size when it was opened.
struct BlockRange {
  std::int64_t first, last;
};
BlockRange block_range(const InputFile& file, const std::string& name, const Shape& shape,
                       const BlockFormat& format, std::int64_t begin, std::int64_t end) {
  check(0 <= begin && begin <= end && end <= shape.rows(), file.path(), ": tensor ", name,
        ": rows ", begin, " to ", end, " of ", shape.rows());
  const std::int64_t blocks_per_row = shape.cols() / format.values;
  return {begin * blocks_per_row, end * blocks_per_row};
}

// Reads blocks [first, last) of the tensor at `offset`.
void read_stored(const InputFile& file, const std::string& name, std::uint64_t offset,
                 const BlockFormat& format, std::int64_t first, std::int64_t last,
                 std::uint8_t* dst) {
  try {
    file.read(offset + static_cast<std::uint64_t>(first) * format.bytes, dst,
              static_cast<std::size_t>(last - first) * format.bytes);
  } catch (const InputError& e) {
    throw InputError(concat(e.what(), " (reading tensor ", printable(name), ")"));
  }
}

}  // namespace

void read_block_rows(const InputFile& file, const std::string& name, const Shape& shape,
                     std::uint64_t offset, const BlockFormat& format, std::int64_t begin,
                     std::int64_t end, float* dst) {
  const auto [first, last] = block_range(file, name, shape, format, begin, end);
  const std::int64_t piece = std::max<std::int64_t>(1, (std::int64_t{1} << 18) / format.bytes);
  std::vector<std::uint8_t> buffer(static_cast<std::size_t>(std::min(piece, last - first)) *
                                   format.bytes);
  for (std::int64_t b = first; b < last; b += piece) {
    const std::int64_t n = std::min(piece, last - b);
    read_stored(file, name, offset, format, b, b + n, buffer.data());
    format.decode(buffer.data(), n, dst);
    dst += n * format.values;
  }
}

void read_stored_rows(const InputFile& file, const std::string& name, const Shape& shape,
                      std::uint64_t offset, const BlockFormat& format, std::int64_t begin,
                      std::int64_t end, std::uint8_t* dst) {
  const auto [first, last] = block_range(file, name, shape, format, begin, end);
  read_stored(file, name, offset, format, first, last, dst);
}

}  // namespace lk
