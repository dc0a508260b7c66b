// What a training step allocates on the CPU: the scratch of cpu/fast/, without running it.
#include <algorithm>

#include "cpu/cpu_backend.h"
#include "cpu/fast/attention_units.h"
#include "cpu/fast/bf16_tile.h"
#include "cpu/fast/decode_attention.h"
#include "cpu/fast/few_rows.h"
#include "cpu/fast/fp8.h"
#include "cpu/fast/gemm.h"
#include "cpu/fast/gemm_tile.h"
#include "cpu/fast/onednn_linear.h"
#include "cpu/kernels.h"
#include "cpu/traits.h"
#include "tensor/plan_backend.h"
#include "tensor/slice_kernels.h"

namespace lk {
namespace {

class CpuPlan final : public PlanBackend {
 public:
  CpuPlan() : PlanBackend(kCpuTraits), fp8_kernels_(cpu::make_fp8_kernels(*this, true)) {}

  // oneDNN packs a BF16 weight twice (fast/onednn_linear.h), and reads one of F32 as it lies.
  void prepare_linear(Weight& w) override {
    struct Packed final : PackedWeight {
      Tensor forward, backward;
    };
    if (w.quantised() || !cpu::prefers_onednn(w.dtype())) return;
    auto packed = std::make_shared<Packed>();
    if (w.dtype() == DType::BF16) {
      const cpu::PackedBytes bytes = cpu::onednn_packed_bytes(w.shape()[0], w.shape()[1]);
      packed->forward = empty(Tag::Workspace, DType::U8, {bytes.forward});
      packed->backward = empty(Tag::Workspace, DType::U8, {bytes.backward});
    }
    w.set_packed(std::move(packed));
  }
  SliceKernels* slice_kernels() override { return &slice_kernels_; }
  void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) override {
    if (w.quantised() && y.rows() <= cpu::kFewRows) return few_rows_of(y, x, w);
    if (through_scratch(y, x, w)) return;
    if (!goes_by_tiles(y)) return by_onednn(x, w);
    if (!w.packed()) product(y, x.dtype(), kAlongK, x.cols());
  }
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                         const Weight& w) override {
    if (through_scratch(dx, mode, dy, w)) return;
    if (!goes_by_tiles(dx)) return by_onednn(dy, w);
    product(dx, dy.dtype(), cpu::Contiguous::Mixed, dy.cols());
  }
  void matmul_nt(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&,
                 const Tensor&) override {
    product(c, a.dtype(), kAlongK, a.cols());
  }
  void matmul_nn(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&) override {
    product(c, a.dtype(), cpu::Contiguous::Mixed, a.cols());
  }
  void attention_forward(const Tensor&, const Tensor&, const Tensor&, const Tensor& k,
                         const Tensor&, const AttentionShape& shape, const Segments& queries,
                         const KeyRows& keys) override {
    // CpuBackend::attention_forward(): a few queries to many keys read them as they lie.
    KeyRows packed;
    for (std::size_t i = 0; i < keys.begins.size(); ++i) {
      const std::int64_t n = queries.host[i + 1] - queries.host[i];
      if (n <= cpu::kDecodeQueries && keys.ends[i] - keys.begins[i] > n) continue;
      packed.begins.push_back(keys.begins[i]), packed.ends.push_back(keys.ends[i]);
    }
    packed_keys(k, shape, packed, 1);
  }
  void attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor& k, const Tensor&, const Tensor&, const Tensor& lse,
                          const AttentionShape& shape, const Segments& documents,
                          const Rotation*) override {
    Tensor packed = packed_keys(k, shape, documents, 2);
    Tensor delta = empty(Tag::Workspace, lse.dtype(), lse.shape());     // rowsum(dy * o)
    if (k.dtype() == DType::BF16) scratch(DType::F32, {2, k.numel()});  // dk and dv, added up
  }

 protected:
  Fp8Kernels* fp8_kernels() override { return fp8_kernels_.get(); }
  void matmul_tn(const Tensor& c, GradMode, double, const Tensor& a, const Tensor&) override {
    product(c, a.dtype(), cpu::Contiguous::AcrossK, a.rows());
  }

 private:
  static constexpr cpu::Contiguous kAlongK = cpu::Contiguous::AlongK;

  // CpuBackend::linear_forward() and linear_backward_x() leave only results of many rows to oneDNN.
  static bool goes_by_tiles(const Tensor& result) {
    return result.rows() <= cpu::kFewRows || !cpu::prefers_onednn(result.dtype());
  }
  // x (T,K) and a weight whose sums are as long, with zeros behind: note [Sums one short] in fast/onednn_linear.cpp.
  void by_onednn(const Tensor& x, const Weight& w) {
    const std::int64_t sums = cpu::onednn_sums(x.cols(), x.dtype());
    if (sums == x.cols()) return;
    Tensor values;
    if (!w.packed()) values = empty(Tag::Workspace, x.dtype(), {sums, w.numel() / x.cols()});
    scratch(x.dtype(), {x.rows(), sums});
  }
  // CpuBackend::few_rows_of(): a part of the weight is dense at a time.
  void few_rows_of(const Tensor& y, const Tensor& x, const Weight& w) {
    const Tensor part = empty(Tag::Workspace, x.dtype(), cpu::few_rows_part(w.shape()));
    if (!cpu::prefers_onednn(x.dtype()))
      product(y.slice_cols(0, part.rows()), x.dtype(), kAlongK, x.cols());
  }
  // Scratch of fast/gemm.cpp: c (M,N) from operands of `in`, sums of K.
  void product(const Tensor& c, DType in, cpu::Contiguous operands, std::int64_t K) {
    const cpu::GemmScratch taken =
        cpu::gemm_scratch(in, c.dtype(), operands, c.rows(), c.cols(), K);
    Tensor sums, right;
    if (taken.sums > 0) sums = empty(Tag::Workspace, DType::F32, {taken.sums});
    if (taken.right > 0) right = empty(Tag::Workspace, DType::F32, {taken.right});
    if (taken.left > 0) scratch(DType::F32, {taken.left});
  }
  // Keys and values as attention lays them out, each document in whole panels: once with rows padded to whole
  // vectors, and `transposed` times transposed: in F32 (fast/flash_attention.cpp), or in BF16 where the processor
  // multiplies it (flash_attention_bf16.cpp).
  Tensor packed_keys(const Tensor& k, const AttentionShape& shape, const KeyRows& rows,
                     std::int64_t transposed) {
    if (k.dtype() == DType::F64) return {};
    const bool native = k.dtype() == DType::BF16 && cpu::best_bf16_tile();
    const std::int64_t wide = native ? cpu::Bf16Tile::kWide : cpu::best_gemm_tile().wide();
    std::int64_t keys = 0;
    for (std::size_t i = 0; i < rows.begins.size(); ++i)
      keys += cpu::round_up(rows.ends[i] - rows.begins[i], wide);
    const std::int64_t width = cpu::round_up(shape.head_dim, native ? 16 : wide),
                       depth = native ? cpu::round_up(shape.head_dim, 2) : shape.head_dim;
    return empty(Tag::Workspace, native ? DType::BF16 : DType::F32,
                 {shape.n_kv_heads, keys * (width + transposed * depth)});
  }

  std::unique_ptr<Fp8Kernels> fp8_kernels_;
  NoSliceKernels slice_kernels_{cpu::kPiece, DType::F64};
};

}  // namespace

std::unique_ptr<Backend> make_cpu_plan() { return std::make_unique<CpuPlan>(); }

}  // namespace lk
