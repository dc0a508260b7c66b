#include "run/bytes_per_parameter.h"

#include <cstdio>

namespace lk {

std::string bytes_per_parameter(const std::string& method, const MemoryReport& memory,
                                std::int64_t frozen, std::int64_t trained) {
  const double n = static_cast<double>(frozen + trained);
  auto of = [&](Tag tag) {
    for (const MemoryRow& row : memory.rows)
      if (row.tag == tag_name(tag)) return static_cast<double>(row.peak_bytes) / n;
    return 0.0;
  };
  const double values = of(Tag::Params), gradients = of(Tag::Gradients),
               moments = of(Tag::Optimizer);
  char text[200];
  std::snprintf(
      text, sizeof text,
      "%s: %.4g bytes for each parameter of the model to train it (values %.4g, gradients "
      "%.4g, optimizer %.4g), %.4g for frozen weights",
      method.c_str(), values + gradients + moments, values, gradients, moments, of(Tag::Weights));
  return text;
}

}  // namespace lk
