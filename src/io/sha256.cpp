#include "io/sha256.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "io/hex.h"
#include "io/input_file.h"
#include "io/sha256_rounds.h"

namespace lk {

namespace {

// The function is chosen once: the processor's SHA instructions are about six times as fast.
Sha256Rounds* const rounds =
    sha256_rounds_x86() != nullptr ? sha256_rounds_x86() : sha256_rounds_portable;

}  // namespace

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
      buffer_{} {}

void Sha256::update(const void* data, std::size_t bytes) {
  auto* p = static_cast<const std::uint8_t*>(data);
  std::size_t held = total_ % 64;
  total_ += bytes;
  if (held > 0) {
    std::size_t n = std::min(bytes, 64 - held);
    std::copy_n(p, n, buffer_.begin() + static_cast<std::ptrdiff_t>(held));
    p += n;
    bytes -= n;
    if (held + n < 64) return;
    rounds(state_.data(), buffer_.data(), 1);
  }
  rounds(state_.data(), p, bytes / 64);
  std::copy_n(p + bytes / 64 * 64, bytes % 64, buffer_.begin());
}

Sha256::Digest Sha256::digest() {
  std::uint64_t bits = total_ * 8;
  const std::uint8_t padding[64] = {0x80};
  update(padding, 1 + (119 - total_ % 64) % 64);  // up to 8 bytes before the end of a block
  std::uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
  update(length, 8);
  Digest out;
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

std::string Sha256::hex() { return sha256_hex(digest()); }

std::string sha256_hex(const Sha256::Digest& digest) {
  std::string out;
  for (std::uint8_t byte : digest) append_hex(out, byte);
  return out;
}

std::string sha256_file(const InputFile& file, const std::atomic<bool>* stop) {
  Sha256 hash;
  std::vector<char> buffer(std::size_t{1} << 20);
  for (std::uint64_t at = 0; at < file.size(); at += buffer.size()) {
    if (stop && stop->load()) return {};
    auto n = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), file.size() - at));
    file.read(at, buffer.data(), n);
    hash.update(buffer.data(), n);
  }
  return hash.hex();
}

std::string sha256_file(const std::string& path) { return sha256_file(InputFile(path)); }

}  // namespace lk
