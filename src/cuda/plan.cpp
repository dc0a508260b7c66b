// What a training step takes on a GPU, without one: this file needs no CUDA and is in every build.
#include <vector>

#include "cpu/cpu_backend.h"
#include "cuda/open_device.h"
#include "cuda/scratch.h"
#include "cuda/traits.h"
#include "tensor/plan_backend.h"
#include "tensor/strip_cut.h"

namespace lk {
namespace {

class CudaPlan final : public PlanBackend {
 public:
  CudaPlan() : PlanBackend(kCudaTraits) {}

  void linear_forward(const Tensor&, const Tensor&, const Weight&) override { product(); }
  void linear_backward_x(const Tensor&, GradMode, const Tensor&, const Weight&) override {
    product();
  }
  void matmul_nt(const Tensor&, GradMode, double, const Tensor&, const Tensor&,
                 const Tensor&) override {
    product();
  }
  void matmul_nn(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {
    product();
  }
  void attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor&, const Tensor&, const Tensor&, const Tensor& lse,
                          const AttentionShape&, const Segments&, const Rotation*) override {
    scratch(lse.dtype(), lse.shape());  // rowsum(dy * o)
  }
  void strips_forward(const Tensor& s, double scale, const Tensor& x, const Tensor& a,
                      std::span<const StripPart> parts, const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || s.cols() > strips::kMostThinA || x.cols() % 8)
      return Backend::strips_forward(s, scale, x, a, parts, drop);
    const std::int64_t slabs = strips::forward_slabs(x.rows(), x.cols());
    if (slabs > 1) scratch(DType::F32, {slabs, x.rows(), s.cols()});
  }
  void strips_into_x(const Tensor& dx, const Tensor& ds, const Tensor& a,
                     std::span<const StripPart> parts, const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || ds.cols() > strips::kMostThinA || dx.cols() % 8)
      Backend::strips_into_x(dx, ds, a, parts, drop);
  }

 protected:
  void matmul_tn(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {
    product();
  }
  void run_strips_backward_b(const Tensor& ds, double scale, const Tensor& dy, const Tensor& b,
                             const Tensor& s, std::span<const StripPart> parts) override {
    const std::int64_t rank = strips::largest_rank(parts);
    if (!strips::ranks_fit(parts) || rank > strips::kMostRankB)
      return Backend::run_strips_backward_b(ds, scale, dy, b, s, parts);
    std::vector<std::int64_t> widths;
    for (const StripPart& part : parts) widths.push_back(part.end - part.begin);
    run_strips(dy, widths, strips::sixteens_b(rank), true, strips::kBlocks);
  }
  void run_strips_backward_a(const Tensor& ds, const Tensor& x, const NormedInput* norm,
                             std::span<const StripPart> parts, const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || ds.cols() > strips::kMostThinA)
      return Backend::run_strips_backward_a(ds, x, norm, parts, drop);
    run_strips(x, {x.cols()}, strips::sixteens_a(ds.cols()), false, strips::kBlocks);
  }
  void run_swiglu_strips_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy,
                                  const Tensor& gate, const Tensor& up, const Tensor& ds,
                                  std::span<const StripPart> parts,
                                  const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || ds.cols() > strips::kMostThinSwiglu ||
        (drop.p > 0 && parts.size() > 1))
      return Backend::run_swiglu_strips_backward(dgate, dup, dy, gate, up, ds, parts, drop);
    run_strips(dy, {dy.cols()}, strips::sixteens_a(ds.cols()), false, strips::kSwigluBlocks);
  }

 private:
  // Partial sums of lora/linear_strips.cu: of dw for each slab of rows, of ds for each of columns.
  void run_strips(const Tensor& wide, const std::vector<std::int64_t>& widths, int nr, bool with_ds,
                  std::int64_t most_blocks) {
    const strips::Cut c = strips::cut(wide.rows(), widths, nr, with_ds, most_blocks);
    Tensor dw = empty(Tag::Workspace, DType::F32, {c.row_slabs, wide.cols(), 16 * nr});
    if (with_ds) scratch(DType::F32, {c.column_slabs, wide.rows(), 16 * nr});
  }
  // cuBLASLt's workspace, once.
  void product() {
    if (!product_workspace_)
      product_workspace_ =
          empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(kGemmWorkspaceBytes)});
  }

  Tensor product_workspace_;
};

}  // namespace

std::unique_ptr<Backend> open_plan_device(const std::string& name) {
  if (name == "cpu") return make_cpu_plan();
  if (name == "cuda" || name.starts_with("cuda:")) return std::make_unique<CudaPlan>();
  throw UsageError(concat("a plan for \"", name, "\": expected cpu, cuda or cuda:N"));
}

}  // namespace lk
