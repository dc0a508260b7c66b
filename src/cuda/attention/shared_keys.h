// The CUDA device's attention over keys that all tokens share.
#pragma once

#include "cuda/cuda_backend.h"
#include "tensor/shared_keys.h"

namespace lk {

class CudaSharedKeyKernels final : public SharedKeyKernels {
 public:
  explicit CudaSharedKeyKernels(CudaBackend& backend) : backend_(backend) {}
  void shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode, const Tensor& q,
                           const SharedKeys& keys, const AttentionShape& shape) override;
  void shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk, const Tensor& dv,
                            const Tensor& delta, const Tensor& dout, const Tensor& q,
                            const SharedKeys& keys, const Tensor& o, const Tensor& lse,
                            const AttentionShape& shape) override;

 private:
  CudaBackend& backend_;
};

}  // namespace lk
