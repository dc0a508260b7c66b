// Activations of the form x * sigmoid(z(x)), which SwiGLU, GEGLU, GELU and ReLU all have. The
// derivative is s (1 + x z'(x) (1 - s)) with s = sigmoid(z(x)).
#pragma once

#include <cmath>
#include <limits>

#include "cpu/fast/simd.h"

namespace lk::cpu {

// silu(x) = x sigmoid(x)
struct Silu {
  template <class A>
  static LK_INLINE A z(A x) {
    return x;
  }
  template <class A>
  static LK_INLINE A dz(A) {
    return A(1);
  }
};

// GELU's tanh form (Hendrycks & Gimpel 2016): x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715
// x^3). (1 + tanh(u)) / 2 is sigmoid(2u).
struct GeluTanh {
  static constexpr double kTwice = 1.5957691216057308;  // 2 sqrt(2/pi)
  static constexpr double kCubic = 0.044715;
  template <class A>
  static LK_INLINE A z(A x) {
    return A(kTwice) * x * (A(1) + A(kCubic) * x * x);
  }
  template <class A>
  static LK_INLINE A dz(A x) {
    return A(kTwice) * (A(1) + A(3 * kCubic) * x * x);
  }
};

// max(x, 0) is x times a step: a sigmoid of infinite slope, whose own derivative never counts.
struct Relu {
  template <class A>
  static LK_INLINE A z(A x) {
    return x > 0 ? std::numeric_limits<A>::infinity() : -std::numeric_limits<A>::infinity();
  }
  template <class A>
  static LK_INLINE A dz(A) {
    return A(0);
  }
};

// sigmoid(z(x)), which times x is the activation's value: exact to the last bits, and a fast twin.
template <class Act, class A>
A sigmoid_of(A x) {
  return A(1) / (A(1) + std::exp(-Act::z(x)));
}
template <class Act>
LK_INLINE float fast_sigmoid_of(float x) {
  return 1.0f / (1.0f + fast_exp(-Act::z(x)));
}
// d activation / dx, given s = sigmoid(z(x))
template <class Act, class A>
LK_INLINE A slope(A x, A s) {
  return s * (A(1) + x * Act::dz(x) * (A(1) - s));
}

}  // namespace lk::cpu
