// The CUDA device's kernels for quantised matrices: dequantise.cu, and fp8.cu and fp8_factor.cu
// for products of codes.
#pragma once

#include <optional>

#include "cuda/cuda_backend.h"
#include "tensor/fp8_kernels.h"
#include "tensor/quantised_kernels.h"

namespace lk {

class CudaFp8Kernels final : public Fp8Kernels {
 public:
  explicit CudaFp8Kernels(CudaBackend& backend) : backend_(backend) {}
  bool in_hardware() const override { return true; }
  bool takes(DType dtype) const override { return dtype == DType::BF16; }
  void quantise_rows(const Fp8Rows& to, const Tensor& x, std::span<const Tensor> columns,
                     const Fp8Thin& beside) override;
  void transpose(const Fp8Rows& to, const Tensor& codes) override;
  void put(const Fp8Rows& to, const Fp8Rows& from) override;
  void quantise_factor(const Tensor& to, const Fp8Thin& f, bool turned,
                       const Tensor& scales) override;
  bool multiply(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                const Tensor& addend) override {
    return backend_.multiply_fp8(y, mode, a, b, addend);
  }

 private:
  CudaBackend& backend_;
};

class CudaQuantisedKernels final : public QuantisedKernels {
 public:
  explicit CudaQuantisedKernels(CudaBackend& backend) : backend_(backend), fp8_(backend) {}
  // Proves them by small products when they are first asked for.
  Fp8Kernels* fp8_kernels() override;
  std::string why_no_fp8() override;
  void dequantise(const Tensor& to, const Weight& w) override;
  // to (n,K) = the rows of w that ids (n), on the device, choose; null: all.
  void rows(const Tensor& to, const Weight& w, const int* ids);

 private:
  CudaBackend& backend_;
  CudaFp8Kernels fp8_;
  std::optional<std::string> fp8_fault_;  // "": proved right
};

}  // namespace lk
