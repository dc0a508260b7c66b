// SHA-256 (FIPS 180-4), for fingerprints of base models and the proof that they did not change.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace lk {

class InputFile;

class Sha256 {
 public:
  using Digest = std::array<std::uint8_t, 32>;
  Sha256();
  void update(const void* data, std::size_t bytes);
  Digest digest();    // finishes
  std::string hex();  // finishes; 64 lower-case hex digits

 private:
  std::array<std::uint32_t, 8> state_;
  std::array<std::uint8_t, 64> buffer_;
  std::uint64_t total_ = 0;
};

std::string sha256_hex(const Sha256::Digest& digest);  // 64 lower-case hex digits

// Hashes a whole file, read in pieces: 64 lower-case hex digits, or nothing if `stop` became true
// before the end. Throws as InputFile does.
std::string sha256_file(const InputFile& file, const std::atomic<bool>* stop = nullptr);
std::string sha256_file(const std::string& path);

}  // namespace lk
