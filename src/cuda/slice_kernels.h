// The CUDA device's kernels for slices of what trains.
#pragma once

#include "cuda/cuda_backend.h"
#include "cuda/scratch.h"
#include "tensor/slice_kernels.h"

namespace lk {

class CudaSliceKernels final : public SliceKernels {
 public:
  explicit CudaSliceKernels(CudaBackend& backend)
      : SliceKernels(kSumPiece, DType::F32), backend_(backend) {}
  void square_sums(const Tensor& sums, std::span<const Tensor> tensors) override;  // optim.cu
  void add_square_sums(const Tensor& out, const Tensor& sums) override;            // optim.cu
  void copy_many(std::span<const Copy> copies) override;                           // copies.cu

 private:
  CudaBackend& backend_;
};

// Copies a few words to pinned host memory, by a kernel: the engines that copy take longer to begin and to end.
void copy_to_host(void* pinned, const Tensor& x, cudaStream_t stream);  // copies.cu

}  // namespace lk
