// The solution of exercises/03_no_dw.h.
//
// dW = dyᵀ x needs the layer's input, so a layer that trains W keeps it: L inputs, all but the
// first of them made by the layer before, and the last output. dx = dy W needs no input. LoRA's dA
// needs the input too, but there are no C x C gradients: 2 thin products a layer.
#pragma once

#include <cstdint>

namespace lk::exercise {

enum class Way { Frozen, Trained, Lora };

// The number of products in backward that compute gradients of weights.
inline std::int64_t weight_gradients(Way way, std::int64_t L) {
  // ---- your code ----
  switch (way) {
    case Way::Frozen:
      return 0;
    case Way::Trained:
      return L;
    case Way::Lora:
      return 2 * L;  // dA and dB
  }
  return -1;
  // ---- end ----
}

// Bytes of activations that are alive between forward and backward, the last output included.
inline std::int64_t activation_bytes(Way way, std::int64_t L, std::int64_t T, std::int64_t C,
                                     std::int64_t R) {
  // ---- your code ----
  constexpr std::int64_t kBytes = 8;
  switch (way) {
    case Way::Frozen:
      return T * C * kBytes;  // the last output
    case Way::Trained:
      return L * T * C * kBytes;
    case Way::Lora:
      return L * (T * C + T * R) * kBytes;
  }
  return -1;
  // ---- end ----
}

}  // namespace lk::exercise
