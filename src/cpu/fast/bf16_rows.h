// Row kernels of BF16 activations that contain exponentials, for processors with AVX-512 BF16:
// these round 16 floats to BF16 in one instruction, and their exp takes half as many. The maths is
// that of the fast paths in gated.cpp and loss.cpp.
//
// This header and bf16_rows.cpp use no inline function of any other header: see gemm_tile.h.
#pragma once

#include <cstdint>

namespace lk::cpu {

struct Bf16Rows {
  // y = silu(gate) * up
  void (*swiglu)(std::uint16_t* y, const std::uint16_t* gate, const std::uint16_t* up,
                 std::int64_t n);
  // Writes dgate and dup; dgate may be gate's memory and dup may be up's.
  void (*swiglu_backward)(std::uint16_t* dgate, std::uint16_t* dup, const std::uint16_t* dy,
                          const std::uint16_t* gate, const std::uint16_t* up, std::int64_t n);
  // sum of exp(x - shift)
  float (*sum_exp)(const std::uint16_t* x, std::int64_t n, float shift);
  // x = scale * exp(x - lse) - off
  void (*softmax)(std::uint16_t* x, std::int64_t n, float lse, float scale, float off);
  // y = x rounded as bf16(x) is in tensor/dtype.h, to the last bit: the instruction that rounds would
  // flush subnormal numbers.
  void (*round)(std::uint16_t* y, const float* x, std::int64_t n);
};

namespace isa_bf16 {
extern const Bf16Rows bf16_rows;
}

// The kernels if this processor runs them, else null; see also best_bf16_tile().
const Bf16Rows* best_bf16_rows();

}  // namespace lk::cpu
