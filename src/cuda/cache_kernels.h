// The CUDA device's kernels for a step of generation with a KV cache.
#pragma once

#include "cuda/cuda_backend.h"
#include "tensor/cache_kernels.h"

namespace lk {

class CudaCacheKernels final : public CacheKernels {
 public:
  explicit CudaCacheKernels(CudaBackend& backend) : backend_(backend) {}
  bool linear_parts(const Tensor& x, const MadeInput* input,
                    std::span<const LinearPart> parts) override;  // linear.cu
  bool rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v, const CacheRows& cache,
                       const Tensor& table, const Tensor& positions,
                       int head_dim) override;                              // rope.cu
  bool attend(const CachedAttention& a) override;                           // attention/decode.cu
  bool choose_next(const NextInputs& next, const Tensor& logits) override;  // choose.cu

 private:
  CudaBackend& backend_;
};

}  // namespace lk
