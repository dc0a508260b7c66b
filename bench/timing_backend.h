// TimingBackend: a Backend that hands every op on to another one and notes how long it took.
//
// A model built on it computes the same bits: ops, shapes and order are the inner backend's, memory
// comes from it, and the books by tag are kept here. Ops are bracketed by marks of the device's own
// clock, so that a GPU need not be waited for. What lies between two brackets is a gap: the device
// had no work. Where kernels are shorter than a launch, part of the launch is counted with the op.
//
// Bytes count each input read once and each output written once (an added-to output is read too);
// FLOPs are those of the maths: attention's causal half, its backward with 5 products.
#pragma once

#include <array>
#include <string>
#include <unordered_map>
#include <vector>

#include "tensor/backend.h"

namespace lk::bench {

// What a device was seen to do in this process: the yardsticks of roofline.h.
struct Roofs {
  double flops_per_second = 0, bytes_per_second = 0;
};

enum class OpFamily : std::uint8_t {
  BaseLinear,  // frozen projections of the blocks, forward and dX
  Head,        // the frozen head, likewise
  Lora,        // every product with A, B or their gradients
  AttentionForward,
  AttentionBackward,
  Norm,
  Rope,
  Gated,  // swiglu, geglu and gelu
  Loss,
  Embedding,  // and the choice of supervised rows
  Optimizer,
  Transfer,  // between host and device
  Other,     // residual additions, dropout, biases, copies
};
inline constexpr int kFamilyCount = 13;
const char* family_name(OpFamily family);

// What one op has to do at least.
struct OpWork {
  double flops = 0, bytes = 0;
};

struct FamilyTime {
  std::int64_t calls = 0;
  double seconds = 0;
  OpWork work;
  double roof_seconds = 0;  // sum over calls of the longer of flops and bytes, each at its roof
};

struct Profile {
  std::array<FamilyTime, kFamilyCount> families{};
  double seconds = 0;       // from start() to finish(), on the device's clock
  double busy_seconds = 0;  // sum over families; what is missing to `seconds` are gaps
};
// One line a family that was called: ms, share of the step, share of its own roof; then the gaps.
std::string profile_table(const Profile& profile);

class TimingBackend final : public Backend {
 public:
  // `inner` must outlive this backend, and this one every Tensor made on it. A product with the
  // memory of `head` counts as Head.
  TimingBackend(Backend& inner, const Roofs& roofs, const Weight& head);
  ~TimingBackend() override;

  // Ops are noted from start() to finish(), which waits for the device.
  void start();
  Profile finish();

  std::string name() const override { return inner_.name(); }
  std::string description() const override { return inner_.description(); }
  bool is_cpu() const override { return inner_.is_cpu(); }
  std::unique_ptr<Readback> read_later(const Tensor& scalar) override {
    return inner_.read_later(scalar);
  }
  std::unique_ptr<Recording> record(const std::function<void()>&, const Recording*) override {
    return nullptr;  // ops are timed one by one
  }
  std::unique_ptr<HostCopy> offload(const Tensor& x) override { return inner_.offload(x); }
  bool can_offload() const override { return inner_.can_offload(); }
  bool prefers_fused_linear() const override { return inner_.prefers_fused_linear(); }
  DType preferred_dtype() const override { return inner_.preferred_dtype(); }
  bool keeps_quantised(const GgmlType& type) const override { return inner_.keeps_quantised(type); }
  std::int64_t free_memory() const override;
  void upload(const Tensor& dst, const void* src, std::size_t bytes) override;
  void download(void* dst, const Tensor& src, std::size_t bytes) override;
  void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) override {
    inner_.upload_made(dst, unit_bytes, make);
  }
  void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) override {
    inner_.look_at(src, unit_bytes, look);
  }
  void synchronize() override { inner_.synchronize(); }
  std::unique_ptr<DeviceClock> make_clock() override { return inner_.make_clock(); }
  void fill(const Tensor& x, double value) override;
  void uniform(const Tensor& x, float bound, const RandomKey& key) override;
  void copy(const Tensor& y, const Tensor& x) override;
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override;
  void scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
             const Tensor& x) override;
  void add_bias(const Tensor& y, const Weight& bias) override;
  void dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
               const RandomKey& key) override;
  void prepare_linear(Weight& w) override { inner_.prepare_linear(w); }
  void linear_forward(const Tensor& y, const Tensor& x, const Weight& w) override;
  void linear_forward_parts(const Tensor& x, const InputNorm* norm,
                            std::span<const LinearPart> parts) override;
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                         const Weight& w) override;
  void matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a, const Tensor& b,
                 const Tensor& addend) override;
  void matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;
  void strips_forward(const Tensor& s, double scale, const Tensor& x, const Tensor& a,
                      std::span<const StripPart> parts, const InputDropout& drop) override;
  void strips_into_x(const Tensor& dx, const Tensor& ds, const Tensor& a,
                     std::span<const StripPart> parts, const InputDropout& drop) override;
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
  void rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v, const CacheRows& cache,
                       const Tensor& table, const Tensor& positions, int head_dim) override;
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

 private:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;
  void run_strips_backward_b(const Tensor& ds, double scale, const Tensor& dy, const Tensor& b,
                             const Tensor& s, std::span<const StripPart> parts) override;
  void run_strips_backward_a(const Tensor& ds, const Tensor& x, const NormedInput* norm,
                             std::span<const StripPart> parts, const InputDropout& drop) override;
  void run_swiglu_strips_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy,
                                  const Tensor& gate, const Tensor& up, const Tensor& ds,
                                  std::span<const StripPart> parts,
                                  const InputDropout& drop) override;
  // Runs op() between two marks and books it; ops inside of it (a backend may use its own ops) are
  // part of it.
  template <class Op>
  void timed(OpFamily family, OpWork work, Op&& op);
  OpFamily linear_family(const Weight& w) const;

  struct Call {
    OpFamily family;
    OpWork work;
  };
  Backend& inner_;
  Roofs roofs_;
  const void* head_;
  std::unordered_map<void*, Tensor> blocks_;  // what the cache holds, in the inner backend's memory
  std::unique_ptr<DeviceClock> clock_;
  std::vector<Call> calls_;
  bool recording_ = false;
  int depth_ = 0;
};

}  // namespace lk::bench
