// CpuBackend: every entry point of Backend on the host. Each op family has its own file, where the
// plain twin (templated over F64, F32, BF16: the definition) stands next to the fast path.
#pragma once

#include <string>

#include "cpu/cpu_backend.h"
#include "cpu/processors.h"
#include "tensor/adapter_kernels.h"
#include "tensor/backend_ops.h"
#include "tensor/dora_kernels.h"
#include "tensor/fp8_kernels.h"
#include "tensor/quantised_kernels.h"
#include "tensor/shared_keys.h"

namespace lk {

class CpuBackend : public Backend,
                   private AdapterKernels,
                   private SharedKeyKernels,
                   private QuantisedKernels {
 public:
  // Whose kernels multiply frozen weights. Tests choose; everyone else lets the processor decide.
  enum class Products { Best, Tiles, Onednn };
  explicit CpuBackend(CpuMode mode, Products products = Products::Best,
                      const DeviceTraits& traits = traits_of_this_processor());
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  bool keeps_quantised(const GgmlType& type) const override;
  AdapterKernels* adapter_kernels() override { return this; }
  DoraKernels* dora_kernels() override { return dora_kernels_.get(); }
  SharedKeyKernels* shared_key_kernels() override { return this; }
  QuantisedKernels* quantised_kernels() override { return this; }
  SliceKernels* slice_kernels() override { return slice_kernels_.get(); }
  Fp8Kernels* fp8_kernels() override { return fp8_kernels_.get(); }

  std::int64_t free_memory() const override;
  void upload(const Tensor& dst, const void* src, std::size_t bytes) override;
  void download(void* dst, const Tensor& src, std::size_t bytes) override;
  void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) override;
  void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) override;
  void synchronize() override {}  // every call returns with its work done

  void prepare_linear(Weight& w) override;

#define LK_OVERRIDE(op, parameters, arguments) void op parameters override;
  LK_BACKEND_OPS(LK_OVERRIDE)
#undef LK_OVERRIDE

  void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                     const Segments& documents, const RowVariants& variants) override;
  void shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode, const Tensor& q,
                           const SharedKeys& keys, const AttentionShape& shape) override;
  void shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk, const Tensor& dv,
                            const Tensor& delta, const Tensor& dout, const Tensor& q,
                            const SharedKeys& keys, const Tensor& o, const Tensor& lse,
                            const AttentionShape& shape) override;
  void dequantise(const Tensor& to, const Weight& w) override;

 protected:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;
  void column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                   const Tensor& mean, const Tensor& rstd) override;
  void sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                      const Tensor& ids) override;

 private:
  bool fast() const { return mode_ == CpuMode::Fast; }
  bool use_onednn(DType dtype) const;
  void few_rows_of(const Tensor& y, const Tensor& x, const Weight& quantised);
  // c (+)= alpha op(a) op(b). c has the operands' dtype or that of their sums.
  void product(const Tensor& c, GradMode mode, double alpha, const Tensor& a, bool a_transposed,
               const Tensor& b, bool b_transposed);

  const std::unique_ptr<DoraKernels> dora_kernels_;    // fast/dora.cpp
  const std::unique_ptr<SliceKernels> slice_kernels_;  // fast/slices.cpp
  const std::unique_ptr<Fp8Kernels> fp8_kernels_;      // fast/fp8.cpp
  CpuMode mode_;
  Products products_;
};

}  // namespace lk
