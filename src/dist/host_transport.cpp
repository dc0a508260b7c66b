#include "dist/host_transport.h"

#include "tensor/backend.h"

namespace lk {
namespace {

// A part of `buffer` for each piece.
std::vector<std::span<std::byte>> parts_for(std::span<const Transport::Piece> pieces,
                                            std::vector<std::byte>& buffer) {
  std::size_t bytes = 0;
  for (const Transport::Piece& p : pieces) bytes += p.memory.bytes();
  buffer.resize(bytes);
  std::span<std::byte> rest = buffer;
  std::vector<std::span<std::byte>> parts;
  for (const Transport::Piece& p : pieces) {
    parts.push_back(rest.first(p.memory.bytes()));
    rest = rest.subspan(p.memory.bytes());
  }
  return parts;
}

}  // namespace

void HostTransport::exchange(std::span<const Piece> sends, std::span<const Piece> receives) {
  const auto from = parts_for(sends, sent_), to = parts_for(receives, received_);
  std::vector<World::Send> out;
  std::vector<World::Receive> in;
  for (std::size_t i = 0; i < sends.size(); ++i) {
    const Tensor& memory = sends[i].memory;
    memory.backend().download(from[i].data(), memory, memory.bytes());
    out.push_back({sends[i].peer, from[i]});
  }
  for (std::size_t i = 0; i < receives.size(); ++i) in.push_back({receives[i].peer, to[i]});
  world_.exchange(out, in);
  for (std::size_t i = 0; i < receives.size(); ++i) {
    const Tensor& memory = receives[i].memory;
    memory.backend().upload(memory, to[i].data(), memory.bytes());
  }
}

}  // namespace lk
