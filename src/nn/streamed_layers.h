// Which layers of a frozen base wait elsewhere than on the device that computes, and where: nn/streamed_base.h.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

class Backend;

// No number of a run depends on it.
struct StreamedLayers {
  static constexpr std::int64_t kAll = INT64_MAX;
  std::int64_t count = 0;  // the first so many; 0: none
  bool divided = false;  // on the GPUs of the processes that share a run; else in the host's memory

  explicit operator bool() const { return count > 0; }
  bool on_host() const { return count > 0 && !divided; }
  bool in_parts() const { return count > 0 && divided; }
  // By which a user asks for it: `offload_base` or `shard_base`.
  const char* setting() const { return divided ? "`shard_base`" : "`offload_base`"; }
  // What that setting says: "all" or a number; of the other place's, "0".
  std::string text(bool of_parts) const;
  std::string text() const { return text(divided); }
  bool operator==(const StreamedLayers&) const = default;
};

// Parses what the two settings say, each "all" or a number of layers. Throws UsageError, also if both ask
// for layers.
StreamedLayers parse_streamed_layers(const std::string& offload, const std::string& shard);
// Throws UsageError if layers can't wait elsewhere than on this device.
void require_streamable(const StreamedLayers& layers, const Backend& backend);

}  // namespace lk
