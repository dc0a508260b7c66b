#include "io/block_reader.h"

#include <algorithm>
#include <vector>

#include "io/printable.h"
#include "tensor/error.h"

namespace lk {

void read_block_rows(const InputFile& file, const std::string& name, const Shape& shape,
                     std::uint64_t offset, const BlockFormat& format, std::int64_t begin,
                     std::int64_t end, float* dst) {
  const std::int64_t rows = shape.rows();
  check(0 <= begin && begin <= end && end <= rows, file.path(), ": tensor ", name, ": rows ", begin,
        " to ", end, " of ", rows);
  // Products of numbers that were checked against the file's size when it was opened.
  const std::int64_t blocks_per_row = shape.cols() / format.values;
  const std::int64_t first = begin * blocks_per_row, last = end * blocks_per_row;
  const std::int64_t piece = std::max<std::int64_t>(1, (std::int64_t{1} << 18) / format.bytes);
  std::vector<std::uint8_t> buffer(static_cast<std::size_t>(std::min(piece, last - first)) *
                                   format.bytes);
  try {
    for (std::int64_t b = first; b < last; b += piece) {
      const std::int64_t n = std::min(piece, last - b);
      file.read(offset + static_cast<std::uint64_t>(b) * format.bytes, buffer.data(),
                static_cast<std::size_t>(n) * format.bytes);
      format.decode(buffer.data(), n, dst);
      dst += n * format.values;
    }
  } catch (const InputError& e) {
    throw InputError(concat(e.what(), " (reading tensor ", printable(name), ")"));
  }
}

}  // namespace lk
