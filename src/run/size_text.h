// Sizes for people.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

// "24 bytes", "1.50 KiB", "24576.00 MiB": a size that is not 0 never reads as 0.
std::string size_text(std::int64_t bytes);

}  // namespace lk
