#include "tensor/stored_copy.h"

#include "tensor/backend.h"

namespace lk {

std::unique_ptr<StoredCopy> Backend::offload(const Tensor&) {
  throw UsageError(
      concat(name(), " has no memory apart from the host's, so nothing can be offloaded"));
}

std::unique_ptr<ShardedCopy> Backend::shard(const Tensor&, int, int) {
  throw UsageError(concat(name(), " is no device whose memory other processes read"));
}

}  // namespace lk
