// QuantisedKernels: how a device turns quantised matrices into dense ones. Every device has them.
#pragma once

#include "tensor/backend.h"

namespace lk {

class QuantisedKernels {
 public:
  virtual ~QuantisedKernels() = default;
  // to (N,K) = w, in any floating dtype of the device; rows of `to` may be apart.
  virtual void dequantise(const Tensor& to, const Weight& w) = 0;
};

}  // namespace lk
