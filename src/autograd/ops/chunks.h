// How the rows of a loss are cut into chunks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lk {

// Rows of each of the chunks that n rows need if a chunk has at most `most` > 0: all the same but the last, which is
// little smaller. 0 if n is.
inline std::int64_t equal_chunk(std::int64_t n, std::int64_t most) {
  const std::int64_t count = std::max<std::int64_t>(1, (n + most - 1) / most);
  return (n + count - 1) / count;
}

}  // namespace lk
