// HostTransport: tensors over a World's connections, by way of host memory.
#pragma once

#include <cstddef>
#include <vector>

#include "dist/world.h"
#include "tensor/transport.h"

namespace lk {

class HostTransport : public Transport {
 public:
  // The World must outlive it.
  explicit HostTransport(World& world) : world_(world) {}
  void exchange(std::span<const Piece> sends, std::span<const Piece> receives) override;

 private:
  World& world_;
  std::vector<std::byte> sent_, received_;  // kept from call to call
};

}  // namespace lk
