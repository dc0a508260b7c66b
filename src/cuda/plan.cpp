// What a training step allocates on a GPU, without running it. This file needs no CUDA and is in
// every build.
#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "cuda/scratch.h"
#include "cuda/traits.h"
#include "tensor/fp8_kernels.h"
#include "tensor/lora_kernels.h"
#include "tensor/plan_backend.h"
#include "tensor/slice_kernels.h"

namespace lk {
namespace {

// The scratch of the kernels in cuda/lora/, as a ThinPlan cuts their work.
class LoraPlan final : public LoraKernels {
 public:
  LoraPlan(Backend& backend, std::int64_t& weight_gradients)
      : LoraKernels(weight_gradients), backend_(backend) {}
  void forward(const ThinPlan& plan, const Tensor&, double, const Tensor& x, const Tensor&,
               std::span<const ThinPart>, const InputDropout&) override {
    use(plan.cut_forward(x.rows()));
  }
  void into_x(const ThinPlan&, const Tensor&, const Tensor&, const Tensor&,
              std::span<const ThinPart>, const InputDropout&) override {}

 private:
  void run_backward_b(const ThinPlan& plan, const Tensor&, double, const Tensor& dy, const Tensor&,
                      const Tensor&, std::span<const ThinPart>) override {
    use(plan.cut_backward_b(dy.rows()));
  }
  void run_backward_a(const ThinPlan& plan, const Tensor&, const Tensor& x, const NormedInput*,
                      std::span<const ThinPart>, const InputDropout&) override {
    use(plan.cut_backward_a(x.rows()));
  }
  void run_swiglu_backward(const ThinPlan& plan, const Tensor&, const Tensor&, const Tensor& dy,
                           const Tensor&, const Tensor&, const Tensor&, std::span<const ThinPart>,
                           const InputDropout&) override {
    use(plan.cut_swiglu_backward(dy.rows()));
  }
  void use(const ThinCut& cut) {
    Tensor dw, s;
    if (cut.partial_dw) dw = backend_.empty(Tag::Workspace, DType::F32, *cut.partial_dw);
    if (cut.partial_s) s = backend_.empty(Tag::Workspace, DType::F32, *cut.partial_s);
  }
  Backend& backend_;
};

// FP8 products take no scratch of their own but cuBLASLt's.
class Fp8Plan final : public Fp8Kernels {
 public:
  explicit Fp8Plan(std::function<void()> product) : product_(std::move(product)) {}
  bool in_hardware() const override { return true; }
  bool takes(DType dtype) const override { return dtype == DType::BF16; }
  void quantise_rows(const Fp8Rows&, const Tensor&, std::span<const Tensor>,
                     const Fp8Thin&) override {}
  void transpose(const Fp8Rows&, const Tensor&) override {}
  void put(const Fp8Rows&, const Fp8Rows&) override {}
  void quantise_factor(const Tensor&, const Fp8Thin&, bool, const Tensor&) override {}
  bool multiply(const Tensor&, GradMode, const Fp8Rows&, const Fp8Rows&, const Tensor&) override {
    product_();
    return true;
  }

 private:
  std::function<void()> product_;
};

class CudaPlan final : public PlanBackend {
 public:
  CudaPlan()
      : PlanBackend(kCudaTraits),
        lora_kernels_(*this, weight_gradient_count()),
        fp8_kernels_([this] { product(); }) {}

  void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) override {
    if (takes_codes(x.rows(), w)) return;
    if (!through_scratch(y, x, w)) product();
  }
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                         const Weight& w) override {
    if (!through_scratch(dx, mode, dy, w)) product();
  }
  void matmul_nt(const Tensor&, GradMode, double, const Tensor&, const Tensor&,
                 const Tensor&) override {
    product();
  }
  void matmul_nn(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {
    product();
  }
  void attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor& q, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor& lse, const AttentionShape& shape, const Segments& seg,
                          const Rotation*) override {
    const Tensor delta = empty(Tag::Workspace, lse.dtype(), lse.shape());  // rowsum(dy * o)
    const BackwardSums sums = backward_sums(q.dtype(), shape, seg.total(), seg.count());
    if (sums.slots == 0) return;
    const Tensor turns = empty(Tag::Workspace, DType::I32, {sums.slots + 1});
    scratch(DType::F32, {sums.slots, sums.queries * sums.width});
  }
  LoraKernels* lora_kernels() override { return &lora_kernels_; }
  SliceKernels* slice_kernels() override { return &slice_kernels_; }

 protected:
  Fp8Kernels* fp8_kernels() override { return &fp8_kernels_; }
  void shared_keys_backward(const Tensor&, GradMode, const Tensor& dk, const Tensor&, const Tensor&,
                            const Tensor&, const Tensor& q, const SharedKeys& keys, const Tensor&,
                            const Tensor&, const AttentionShape& shape) override {
    if (!dk) return;
    const std::int64_t n = keys.k.rows(), width = keys.k.cols();
    const SharedKeyChunks cut =
        shared_key_chunks(q.rows() * (shape.n_heads / shape.n_kv_heads), n, width);
    scratch(DType::F32, {2 * cut.count, n * width});
  }
  void matmul_tn(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {
    product();
  }

 private:
  // Takes cuBLASLt's workspace, once.
  void product() {
    if (!product_workspace_)
      product_workspace_ =
          empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(kGemmWorkspaceBytes)});
  }

  LoraPlan lora_kernels_;
  NoSliceKernels slice_kernels_{kSumPiece, DType::F32};
  Fp8Plan fp8_kernels_;
  Tensor product_workspace_;
};

}  // namespace

std::unique_ptr<Backend> open_plan_device(const std::string& name) {
  if (name == "cpu") return make_cpu_plan();
  if (name == "cuda" || name.starts_with("cuda:")) return std::make_unique<CudaPlan>();
  throw UsageError(concat("a plan for \"", name, "\": expected cpu, cuda or cuda:N"));
}

}  // namespace lk
