// PlanBackend: a device that only keeps the books. Every op does nothing, and every allocation is
// an address that is never touched; the ledger counts as on a real device. A real training step run
// on it gives the step's memory by purpose before any weight is read.
//
// Each device has its own subclass (cpu/plan.cpp, cuda/plan.cpp), which also takes the scratch that
// the device's kernels would take if it is large enough to matter. open_plan_device() opens them.
#pragma once

#include <tuple>

#include "tensor/backend.h"
#include "tensor/backend_ops.h"
#include "tensor/dora_kernels.h"
#include "tensor/quantised_kernels.h"
#include "tensor/shared_keys.h"

namespace lk {

class PlanBackend : public Backend, protected SharedKeyKernels, protected QuantisedKernels {
 public:
  explicit PlanBackend(const DeviceTraits& traits);
  ~PlanBackend() override;

  std::string name() const override { return "plan"; }
  std::string description() const override { return "bookkeeping only"; }
  std::int64_t free_memory() const override { return INT64_MAX; }
  void upload(const Tensor&, const void*, std::size_t) override {}
  void download(void* dst, const Tensor& src, std::size_t bytes) override;  // zeros
  void upload_made(const Tensor&, std::size_t, const MakeUnits&) override {}
  void look_at(const Tensor&, std::size_t, const LookAtUnits&) override {}
  void synchronize() override {}
  std::unique_ptr<StoredCopy> offload(const Tensor& x) override;
  std::unique_ptr<ShardedCopy> shard(const Tensor& x, int rank, int size) override;
  void prepare_linear(Weight&) override {}
  DoraKernels* dora_kernels() override { return &dora_kernels_; }
  SharedKeyKernels* shared_key_kernels() override { return this; }
  QuantisedKernels* quantised_kernels() override { return this; }

#define LK_DO_NOTHING(op, parameters, arguments) \
  void op parameters override { static_cast<void>(std::tie arguments); }
  LK_BACKEND_OPS(LK_DO_NOTHING)
#undef LK_DO_NOTHING

 protected:
  void dequantise(const Tensor&, const Weight&) override {}
  // What a device does with a quantised weight: true if it is one.
  bool through_scratch(const Tensor& y, const Tensor& x, const Weight& w);
  bool through_scratch(const Tensor& dx, GradMode mode, const Tensor& dy, const Weight& w);
  void shared_keys_forward(const Tensor&, const Tensor&, GradMode, const Tensor&, const SharedKeys&,
                           const AttentionShape&) override {}
  void shared_keys_backward(const Tensor&, GradMode, const Tensor&, const Tensor&, const Tensor&,
                            const Tensor&, const Tensor&, const SharedKeys&, const Tensor&,
                            const Tensor&, const AttentionShape&) override {}
  void matmul_tn(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {}
  void column_sums(const Tensor&, GradMode, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&) override {}
  void sum_rows_by_id(const Tensor&, GradMode, const Tensor&, const Tensor&) override {}
  // Scratch that an op takes while it runs.
  void scratch(DType dtype, Shape shape) { empty(Tag::Workspace, dtype, shape); }

 private:
  // More than any machine has, and so little that sums of it do not overflow.
  static constexpr std::uintptr_t kMostBytes = std::uintptr_t{1} << 56;
  NoDoraKernels dora_kernels_{weight_gradient_count()};
  std::uintptr_t next_ = 4096;  // addresses are only names here: never read, never written
};

}  // namespace lk
