// The CUDA device's kernels for LoRA: thin products through joined projections, and many adapters
// on one model. A comment above each group of methods names the .cu file that defines them.
#pragma once

#include "cuda/cuda_backend.h"
#include "tensor/adapter_kernels.h"
#include "tensor/lora_kernels.h"

namespace lk {

class CudaLoraKernels final : public LoraKernels, public AdapterKernels {
 public:
  CudaLoraKernels(CudaBackend& backend, std::int64_t& weight_gradients)
      : LoraKernels(weight_gradients), backend_(backend) {}

  // thin_dropout.cu
  void forward(const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
               const Tensor& a, std::span<const ThinPart> parts, const InputDropout& drop) override;
  void into_x(const ThinPlan& plan, const Tensor& dx, const Tensor& ds, const Tensor& a,
              std::span<const ThinPart> parts, const InputDropout& drop) override;
  // lora_segments.cu
  void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                     const Segments& documents, const RowVariants& variants) override;

 private:
  // thin_backward.cu
  void run_backward_b(const ThinPlan& plan, const Tensor& ds, double scale, const Tensor& dy,
                      const Tensor& b, const Tensor& s, std::span<const ThinPart> parts) override;
  void run_backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                      const NormedInput* norm, std::span<const ThinPart> parts,
                      const InputDropout& drop) override;
  // thin_swiglu.cu
  void run_swiglu_backward(const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                           const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& ds,
                           std::span<const ThinPart> parts, const InputDropout& drop) override;

  CudaBackend& backend_;
};

}  // namespace lk
