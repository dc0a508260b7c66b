// The CUDA device's dequantising kernels, defined in dequantise.cu.
#pragma once

#include "cuda/cuda_backend.h"
#include "tensor/quantised_kernels.h"

namespace lk {

class CudaQuantisedKernels final : public QuantisedKernels {
 public:
  explicit CudaQuantisedKernels(CudaBackend& backend) : backend_(backend) {}
  void dequantise(const Tensor& to, const Weight& w) override;
  // to (n,K) = the rows of w that ids (n), on the device, choose; null: all.
  void rows(const Tensor& to, const Weight& w, const int* ids);

 private:
  CudaBackend& backend_;
};

}  // namespace lk
