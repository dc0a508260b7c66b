#include "nn/streamed_layers.h"

#include <charconv>

#include "tensor/backend.h"

namespace lk {
namespace {

std::int64_t layers_of(const std::string& text, const char* setting) {
  if (text == "all") return StreamedLayers::kAll;
  std::int64_t layers = 0;
  const char *first = text.data(), *last = first + text.size();
  const auto [rest, error] = std::from_chars(first, last, layers);
  require(error == std::errc() && rest == last && layers >= 0, setting, " ", text,
          ": a number of layers, or all");
  return layers;
}

}  // namespace

std::string StreamedLayers::text(bool of_parts) const {
  if (of_parts != divided) return "0";
  return count == kAll ? "all" : std::to_string(count);
}

StreamedLayers parse_streamed_layers(const std::string& offload, const std::string& shard) {
  const StreamedLayers host{layers_of(offload, "`offload_base`")},
      parts{layers_of(shard, "`shard_base`"), true};
  require(!host || !parts,
          "`shard_base`: `offload_base` has layers wait on the host; give one of the two");
  return parts ? parts : host;
}

void require_streamable(const StreamedLayers& layers, const Backend& backend) {
  require(!layers || backend.traits().can_offload, layers.setting(),
          ": a CPU has no memory apart from the host's");
}

}  // namespace lk
