// CpuBackend: every entry point of Backend on the host. Each op family has its own file, where the
// plain twin (templated over F64, F32, BF16: the definition) stands next to the fast path.
#pragma once

#include <string>

#include "cpu/cpu_backend.h"

namespace lk {

class CpuBackend : public Backend {
 public:
  // Whose kernels multiply frozen weights; tests choose, everyone else lets the processor decide.
  enum class Products { Best, Tiles, Onednn };
  explicit CpuBackend(CpuMode mode, Products products = Products::Best);
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  bool is_cpu() const override { return true; }
  bool keeps_quantised(const GgmlType& type) const override;

  std::int64_t free_memory() const override;
  void upload(const Tensor& dst, const void* src, std::size_t bytes) override;
  void download(void* dst, const Tensor& src, std::size_t bytes) override;
  void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) override;
  void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) override;
  void synchronize() override {}  // every call returns with its work done

  void fill(const Tensor& x, double value) override;
  void uniform(const Tensor& x, float bound, const RandomKey& key) override;
  void copy(const Tensor& y, const Tensor& x) override;
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override;
  void scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
             const Tensor& x) override;
  void add_bias(const Tensor& y, const Weight& bias) override;
  void dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
               const RandomKey& key) override;

  void prepare_linear(Weight& w) override;
  void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) override;
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                         const Weight& w) override;
  void matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a, const Tensor& b,
                 const Tensor& addend) override;
  void matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;

  void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                     const Segments& documents, const RowVariants& variants) override;

  void rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Weight& gain,
                       double eps) override;
  void rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x,
                        const Weight& gain, const Tensor& rstd) override;
  void layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                         const Weight& gain, const Weight& bias, double eps) override;
  void layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x,
                          const Weight& gain, const Tensor& mean, const Tensor& rstd) override;

  void rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& table,
            const Tensor& positions, int head_dim, bool inverse) override;

  void attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const AttentionShape& shape, const Segments& q_seg,
                         const KeyRows& k_rows) override;
  void attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                          const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                          const Tensor& lse, const AttentionShape& shape, const Segments& seg,
                          const Rotation* rotation) override;

  void gated_forward(Activation act, const Tensor& y, const Tensor& gate,
                     const Tensor& up) override;
  void gated_backward(Activation act, const Tensor& y, const Tensor& dgate, GradMode mode,
                      const Tensor& dup, const Tensor& dy, const Tensor& gate,
                      const Tensor& up) override;

  void embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) override;
  void gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) override;
  void put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) override;
  void scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& rows) override;

  void cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                     bool gradient, double scale, const Tensor& factor) override;
  void sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) override;

  void sum_squares(const Tensor& out, std::span<const Tensor> tensors) override;
  void adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
             const Tensor& norm_sq) override;

 protected:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;

 private:
  bool fast() const { return mode_ == CpuMode::Fast; }
  bool use_onednn(DType dtype) const;
  // c (+)= alpha op(a) op(b). c has the operands' dtype, or that of their sums.
  void product(const Tensor& c, GradMode mode, double alpha, const Tensor& a, bool a_transposed,
               const Tensor& b, bool b_transposed);

  CpuMode mode_;
  Products products_;
};

}  // namespace lk
