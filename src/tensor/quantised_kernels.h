// QuantisedKernels: how a device computes with quantised matrices. Every device turns them into dense
// ones; some multiply E4M3 codes as they are.
#pragma once

#include <string>

#include "tensor/backend.h"

namespace lk {

class Fp8Kernels;

class QuantisedKernels {
 public:
  virtual ~QuantisedKernels() = default;
  // to (N,K) = w, in any floating dtype of the device; rows of `to` may be apart.
  virtual void dequantise(const Tensor& to, const Weight& w) = 0;
  // Products of E4M3 codes (tensor/fp8_kernels.h), null where the device has none that were proved
  // right on it: `why_no_fp8()` then says what is wrong.
  virtual Fp8Kernels* fp8_kernels() { return nullptr; }
  virtual std::string why_no_fp8() { return "it multiplies no FP8"; }
};

}  // namespace lk
