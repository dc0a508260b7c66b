// 3. Why is there no dW?
//
// L linear layers y = x Wᵀ stand one after the other, each W of C x C, for T tokens in F64. Say
// what each way of training costs; the test runs the layers and counts.
//
//   Frozen    every W is frozen, and the input of the first layer wants its gradient
//   Trained   every W is a Parameter, and the first input is a constant
//   Lora      every W is frozen and has an A (R x C) and a B (C x R); the first input is a constant
//
// A layer's gradients are dx = dy W and, if W trains, dW = dyᵀ x. Look at who reads x.
//
// Hints
// - Backend::weight_gradient_matmuls() counts the products that contract over tokens.
// - A node keeps what its backward reads. Which of the three nodes reads its layer's input?
// - LoRA's node also keeps s = x Aᵀ, T x R, because dB = scale dyᵀ s.
// - The first input was there before; the caller keeps the last output.
#pragma once

#include <cstdint>

namespace lk::exercise {

enum class Way { Frozen, Trained, Lora };

// The number of products in backward that compute gradients of weights.
inline std::int64_t weight_gradients(Way way, std::int64_t L) {
  // ---- your code ----
  static_cast<void>(way);
  return -L;
  // ---- end ----
}

// Bytes of activations that are alive between forward and backward, the last output included.
inline std::int64_t activation_bytes(Way way, std::int64_t L, std::int64_t T, std::int64_t C,
                                     std::int64_t R) {
  // ---- your code ----
  static_cast<void>(way);
  return -L * T * C * R;
  // ---- end ----
}

}  // namespace lk::exercise
