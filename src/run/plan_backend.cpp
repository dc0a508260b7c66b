#include "run/plan_backend.h"

#include <algorithm>
#include <cstring>

#include "cpu/fast/bf16_tile.h"
#include "cpu/fast/gemm.h"
#include "cpu/fast/onednn_linear.h"
#include "tensor/scratch.h"
#include "tensor/strip_cut.h"

namespace lk {
namespace {

class PlanBackend final : public Backend {
 public:
  explicit PlanBackend(bool as_cpu) : as_cpu_(as_cpu) {
    set_cache(std::make_unique<BlockCache>(
        [this](std::size_t bytes) {
          next_ += bytes;
          return reinterpret_cast<void*>(next_);
        },
        [](void*, std::size_t) {}));
  }
  ~PlanBackend() override {
    gemm_workspace_ = Tensor();
    release_cache();
  }

  std::string name() const override { return "plan"; }
  std::string description() const override { return "bookkeeping only"; }
  bool is_cpu() const override { return as_cpu_; }
  std::int64_t free_memory() const override { return INT64_MAX; }
  void upload(const Tensor&, const void*, std::size_t) override {}
  void download(void* dst, const Tensor&, std::size_t bytes) override {
    std::memset(dst, 0, bytes);
  }
  void upload_made(const Tensor&, std::size_t, const MakeUnits&) override {}
  void look_at(const Tensor&, std::size_t, const LookAtUnits&) override {}
  void synchronize() override {}
  bool can_offload() const override { return !as_cpu_; }
  std::unique_ptr<HostCopy> offload(const Tensor& x) override {
    struct Counted final : HostCopy {
      PlanBackend& backend;
      std::size_t bytes;
      Counted(PlanBackend& b, std::size_t n) : backend(b), bytes(n) {
        backend.offload_ledger().allocated(Tag::Activations, bytes);
      }
      ~Counted() override { backend.offload_ledger().freed(Tag::Activations, bytes); }
      void sent() override {}
      void fetch(const Tensor&) override {}
      void arrived() override {}
    };
    if (as_cpu_) return Backend::offload(x);
    const auto n = static_cast<std::size_t>((x.rows() - 1) * x.ld() + x.cols());
    return std::make_unique<Counted>(*this, n * dtype_size(x.dtype()));
  }
  void fill(const Tensor&, double) override {}
  void uniform(const Tensor&, float, const RandomKey&) override {}
  void copy(const Tensor&, const Tensor&) override {}
  void add(const Tensor&, const Tensor&, const Tensor&) override {}
  void scale(const Tensor&, GradMode, double, const Tensor&, const Tensor&) override {}
  void add_bias(const Tensor&, const Weight&) override {}
  void dropout(const Tensor&, GradMode, const Tensor&, float, const RandomKey&) override {}
  // oneDNN packs a BF16 weight twice (cpu/fast/onednn_linear.h).
  void prepare_linear(Weight& w) override {
    struct Packed final : PackedWeight {
      Tensor forward, backward;
    };
    if (!as_cpu_ || w.dtype() != DType::BF16 || !cpu::prefers_onednn(w.dtype())) return;
    auto packed = std::make_shared<Packed>();
    const cpu::PackedBytes bytes = cpu::onednn_packed_bytes(w.shape()[0], w.shape()[1]);
    packed->forward = empty(Tag::Workspace, DType::U8, {bytes.forward});
    packed->backward = empty(Tag::Workspace, DType::U8, {bytes.backward});
    w.set_packed(std::move(packed));
  }
  void linear_forward(const Tensor& y, const Tensor& x, const Weight&) override {
    gemm(y.rows(), y.cols(), x.cols(), x.dtype());
  }
  void linear_backward_x(const Tensor& dx, GradMode, const Tensor& dy, const Weight&) override {
    gemm(dx.rows(), dx.cols(), dy.cols(), dy.dtype());
  }
  void matmul_nt(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&,
                 const Tensor&) override {
    gemm(c.rows(), c.cols(), a.cols(), a.dtype());
  }
  void matmul_nn(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&) override {
    gemm(c.rows(), c.cols(), a.cols(), a.dtype());
  }
  void strips_forward(const Tensor& s, double scale, const Tensor& x, const Tensor& a,
                      std::span<const StripPart> parts, const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || s.cols() > strips::kMostThinA || x.cols() % 8)
      return Backend::strips_forward(s, scale, x, a, parts, drop);
    const std::int64_t slabs = strips::forward_slabs(x.rows(), x.cols());
    if (slabs > 1) empty(Tag::Workspace, DType::F32, {slabs, x.rows(), s.cols()});
  }
  void strips_into_x(const Tensor& dx, const Tensor& ds, const Tensor& a,
                     std::span<const StripPart> parts, const InputDropout& drop) override {
    if (!strips::ranks_fit(parts) || ds.cols() > strips::kMostThinA || dx.cols() % 8)
      Backend::strips_into_x(dx, ds, a, parts, drop);
  }
  void lora_segments(const Tensor&, const Tensor&, const LoraTable&, const Segments&,
                     const RowVariants&) override {}
  void rmsnorm_forward(const Tensor&, const Tensor&, const Tensor&, const Weight&,
                       double) override {}
  void rmsnorm_backward(const Tensor&, GradMode, const Tensor&, const Tensor&, const Weight&,
                        const Tensor&) override {}
  void layernorm_forward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Weight&,
                         const Weight&, double) override {}
  void layernorm_backward(const Tensor&, GradMode, const Tensor&, const Tensor&, const Weight&,
                          const Tensor&, const Tensor&) override {}
  void rope(const Tensor&, GradMode, const Tensor&, const Tensor&, const Tensor&, int,
            bool) override {}
  void attention_forward(const Tensor&, const Tensor&, const Tensor&, const Tensor& k,
                         const Tensor&, const AttentionShape& shape, const Segments&,
                         const KeyRows&) override {
    packed_keys(k, shape, 1);
  }
  void attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor& k, const Tensor&, const Tensor&, const Tensor& lse,
                          const AttentionShape& shape, const Segments&, const Rotation*) override {
    Tensor packed = packed_keys(k, shape, 2);
    empty(Tag::Workspace, lse.dtype(), lse.shape());  // rowsum(dy * o)
  }
  void gated_forward(Activation, const Tensor&, const Tensor&, const Tensor&) override {}
  void gated_backward(Activation, const Tensor&, const Tensor&, GradMode, const Tensor&,
                      const Tensor&, const Tensor&, const Tensor&) override {}
  void embedding_forward(const Tensor&, const Weight&, const Tensor&) override {}
  void gather_rows(const Tensor&, const Tensor&, const Tensor&) override {}
  void put_rows(const Tensor&, const Tensor&, const Tensor&) override {}
  void scatter_rows(const Tensor&, GradMode, const Tensor&, const Tensor&) override {}
  void cross_entropy(const Tensor&, const Tensor&, const Tensor&, bool, double,
                     const Tensor&) override {}
  void sum(const Tensor&, GradMode, double, const Tensor&) override {}
  void sum_squares(const Tensor&, std::span<const Tensor>) override {}
  void adamw(std::span<const AdamWSlot>, const AdamWStep&, const Tensor&) override {}

 protected:
  void matmul_tn(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&) override {
    gemm(c.rows(), c.cols(), a.rows(), a.dtype());
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
  // Keys and values as a CPU's attention lays them out: once with rows padded to whole vectors, and
  // so many times transposed (cpu/fast/flash_attention.cpp; its native BF16 twin takes half).
  Tensor packed_keys(const Tensor& k, const AttentionShape& shape, std::int64_t transposed) {
    if (!as_cpu_ || k.dtype() == DType::F64) return {};
    const std::int64_t D = shape.head_dim, width = (D + 15) / 16 * 16;
    return empty(Tag::Workspace, DType::F32,
                 {shape.n_kv_heads, k.rows() * (width + transposed * D)});
  }
  // Partial sums of cuda/lora/linear_strips.cu: of dw for each slab of rows, of ds for each of columns.
  void run_strips(const Tensor& wide, const std::vector<std::int64_t>& widths, int nr, bool with_ds,
                  std::int64_t most_blocks) {
    const strips::Cut c = strips::cut(wide.rows(), widths, nr, with_ds, most_blocks);
    Tensor dw = empty(Tag::Workspace, DType::F32, {c.row_slabs, wide.cols(), 16 * nr});
    if (with_ds) empty(Tag::Workspace, DType::F32, {c.column_slabs, wide.rows(), 16 * nr});
  }
  // cuBLASLt's workspace, once; or what cpu/fast/gemm.cpp packs of BF16 operands that the processor
  // can't multiply, in F32.
  void gemm(std::int64_t M, std::int64_t N, std::int64_t K, DType dtype) {
    if (!as_cpu_) return gpu_gemm();
    if (dtype != DType::BF16 || cpu::best_bf16_tile()) return;
    const std::int64_t block_k = std::min(K, cpu::kBlockK);
    const std::int64_t block_n =
        std::min(N, (std::int64_t{1} << 20) / std::max<std::int64_t>(block_k, 1));
    Tensor right = empty(Tag::Workspace, DType::F32, {block_n, block_k});
    empty(Tag::Workspace, DType::F32, {std::min<std::int64_t>(M, 1024), block_k});
  }
  void gpu_gemm() {
    if (!gemm_workspace_)
      gemm_workspace_ =
          empty(Tag::Workspace, DType::U8, {static_cast<std::int64_t>(kGemmWorkspaceBytes)});
  }

  Tensor gemm_workspace_;
  std::uintptr_t next_ = 4096;  // addresses are names here: never read, never written
  bool as_cpu_;
};

}  // namespace

std::unique_ptr<Backend> make_plan_backend(bool as_cpu) {
  return std::make_unique<PlanBackend>(as_cpu);
}

}  // namespace lk
