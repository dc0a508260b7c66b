// LoraKernels: thin products through joined projections, in kernels that read the wide matrix once.
// A device may offer them (Backend::lora_kernels); they run where a ThinPlan says so.
// autograd/thin.h defines the products and composes them from the core's ops where there is no
// kernel.
#pragma once

#include <span>

#include "tensor/backend.h"
#include "tensor/thin_plan.h"

namespace lk {

// One projection among those that share an input (autograd/joined.h): columns [begin, end) of the
// wide matrix, columns [column, column + rank) of the thin one, and the factor's gradient. Thin
// columns up to ThinPlan::columns_of(rank) are the part's too: a is zero there, and so is b.
struct ThinPart {
  std::int64_t begin = 0, end = 0;
  std::int64_t column = 0, rank = 0;
  Tensor dw;  // F32 (F64 for F64)
  GradMode mode = GradMode::Write;
  std::uint32_t site = 0;  // of its input's dropout mask
};

// Dropout of a joined projection's input: every projection has a mask of its own.
struct InputDropout {
  float p = 0;
  RandomKey key;  // without the site
  // The masks of all parts, one bit an element: U8, of the plan's kept_bits. The device's forward
  // stores here what it draws, and its backwards read it: drawing costs more than reading. Undefined
  // where nobody keeps them: forward then stores nothing.
  Tensor bits = {};

  RandomKey key_of(const ThinPart& part) const {
    RandomKey of_part = key;
    of_part.site = part.site;
    return of_part;
  }
};

// x = rmsnorm(h), not stored: h and what is needed to compute x from it again.
struct NormedInput {
  Tensor rstd;  // (T) F32|F64
  Weight gain;  // (C)
  double eps = 0;
};

class LoraKernels {
 public:
  virtual ~LoraKernels() = default;
  LoraKernels(const LoraKernels&) = delete;
  LoraKernels& operator=(const LoraKernels&) = delete;

  // The plan must have a kernel for the product, and rows must start at 16 bytes. Each part of a
  // backward counts as one weight gradient (Backend::weight_gradient_matmuls). With dropout into_x
  // and the backwards need the bits that forward stored for the same tokens, plan and parts.
  virtual void forward(const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
                       const Tensor& a, std::span<const ThinPart> parts,
                       const InputDropout& drop) = 0;
  virtual void into_x(const ThinPlan& plan, const Tensor& dx, const Tensor& ds, const Tensor& a,
                      std::span<const ThinPart> parts, const InputDropout& drop) = 0;
  void backward_b(const ThinPlan& plan, const Tensor& ds, double scale, const Tensor& dy,
                  const Tensor& b, const Tensor& s, std::span<const ThinPart> parts) {
    weight_gradients_ += std::ssize(parts);
    run_backward_b(plan, ds, scale, dy, b, s, parts);
  }
  void backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x, const NormedInput* norm,
                  std::span<const ThinPart> parts, const InputDropout& drop) {
    weight_gradients_ += std::ssize(parts);
    run_backward_a(plan, ds, x, norm, parts, drop);
  }
  void swiglu_backward(const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                       const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& ds,
                       std::span<const ThinPart> parts, const InputDropout& drop) {
    weight_gradients_ += std::ssize(parts);
    run_swiglu_backward(plan, dgate, dup, dy, gate, up, ds, parts, drop);
  }

 protected:
  // `weight_gradients` is the device's count, which the kernels increase.
  explicit LoraKernels(std::int64_t& weight_gradients) : weight_gradients_(weight_gradients) {}
  virtual void run_backward_b(const ThinPlan& plan, const Tensor& ds, double scale,
                              const Tensor& dy, const Tensor& b, const Tensor& s,
                              std::span<const ThinPart> parts) = 0;
  virtual void run_backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                              const NormedInput* norm, std::span<const ThinPart> parts,
                              const InputDropout& drop) = 0;
  virtual void run_swiglu_backward(const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                                   const Tensor& dy, const Tensor& gate, const Tensor& up,
                                   const Tensor& ds, std::span<const ThinPart> parts,
                                   const InputDropout& drop) = 0;

 private:
  std::int64_t& weight_gradients_;
};

}  // namespace lk
