// The CUDA device's kernels for DoRA, defined in dora.cu.
#pragma once

#include "cuda/cuda_backend.h"
#include "tensor/dora_kernels.h"

namespace lk {

class CudaDoraKernels final : public DoraKernels {
 public:
  CudaDoraKernels(CudaBackend& backend, std::int64_t& weight_gradients)
      : DoraKernels(weight_gradients), backend_(backend) {}

  void inverse_norms(std::span<const DoraNorms> all) override;
  void scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                     std::span<const DoraPart> parts, const Weight* shift) override;

 private:
  void run_scale_columns_backward(const Tensor& dv, const Tensor& dy, const Tensor& v,
                                  std::span<const DoraPart> parts) override;
  CudaBackend& backend_;
};

}  // namespace lk
