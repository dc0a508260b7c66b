#include "run/size_text.h"

#include <cstdio>

#include "tensor/error.h"

namespace lk {

std::string size_text(std::int64_t bytes) {
  constexpr std::int64_t kKib = 1 << 10, kMib = 1 << 20;
  if (bytes < kKib) return concat(bytes, " bytes");
  char text[40];
  std::snprintf(text, sizeof text, "%.2f %s",
                static_cast<double>(bytes) / static_cast<double>(bytes < kMib ? kKib : kMib),
                bytes < kMib ? "KiB" : "MiB");
  return text;
}

}  // namespace lk
