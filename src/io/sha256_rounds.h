// The compression function of SHA-256, twice: portable, and with the x86 SHA instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lk {

// A function that takes `blocks` blocks of 64 bytes into the state.
using Sha256Rounds = void(std::uint32_t state[8], const std::uint8_t* data, std::size_t blocks);

Sha256Rounds sha256_rounds_portable;
// The compression by SHA instructions; null if this processor has none.
Sha256Rounds* sha256_rounds_x86();

// The round constants: the first 32 bits of the fractional parts of the cube roots of the first 64
// primes.
extern const std::uint32_t kSha256Constants[64];

}  // namespace lk
