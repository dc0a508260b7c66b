// A CPU that offers LoRA's kernels, for tests of what only a GPU does in practice.
#pragma once

#include "autograd/thin.h"
#include "cpu/cpu_backend_impl.h"

namespace lk::test {

// Keeps dropout's masks from forward to backward, as a ThinPlan lays them out. Its products are the
// composed ones; what forward left in the bits must still be there in each backward.
class KeepingBackend : public CpuBackend {
 public:
  struct Counts {
    int kept = 0, not_kept = 0, read = 0;  // calls of forward with dropout, and of backwards
    std::int64_t kept_bytes = 0;           // that forwards filled
    bool intact = true;                    // all bits that backwards read were their forwards'
  };
  // `counts` outlives the backend.
  explicit KeepingBackend(Counts& counts)
      : CpuBackend(CpuMode::Reference), kernels_(weight_gradient_count(), counts) {}
  LoraKernels* lora_kernels() override { return &kernels_; }

 private:
  class Kernels final : public LoraKernels {
   public:
    Kernels(std::int64_t& weight_gradients, Counts& counts)
        : LoraKernels(weight_gradients), counts_(counts) {}
    void forward(const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
                 const Tensor& a, std::span<const ThinPart> parts,
                 const InputDropout& drop) override {
      if (drop.bits.defined()) {
        const std::vector<std::uint8_t> bits = masks(x.rows(), x.cols(), parts, drop);
        drop.bits.expect(*plan.kept_bits(x.rows()), "kept bits");
        drop.bits.backend().upload(drop.bits, bits.data(), bits.size());
        ++counts_.kept;
        counts_.kept_bytes += static_cast<std::int64_t>(bits.size());
      } else {
        ++counts_.not_kept;
      }
      thin::forward(*plain_, plan, s, scale, x, a, parts, drop);
    }
    void into_x(const ThinPlan& plan, const Tensor& dx, const Tensor& ds, const Tensor& a,
                std::span<const ThinPart> parts, const InputDropout& drop) override {
      look(dx, parts, drop);
      thin::into_x(*plain_, plan, dx, ds, a, parts, drop);
    }

   private:
    void run_backward_b(const ThinPlan& plan, const Tensor& ds, double scale, const Tensor& dy,
                        const Tensor& b, const Tensor& s,
                        std::span<const ThinPart> parts) override {
      thin::backward_b(*plain_, plan, ds, scale, dy, b, s, parts);
    }
    void run_backward_a(const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                        const NormedInput* norm, std::span<const ThinPart> parts,
                        const InputDropout& drop) override {
      look(x, parts, drop);
      thin::backward_a(*plain_, plan, ds, x, norm, parts, drop);
    }
    void run_swiglu_backward(const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                             const Tensor& dy, const Tensor& gate, const Tensor& up,
                             const Tensor& ds, std::span<const ThinPart> parts,
                             const InputDropout& drop) override {
      look(dy, parts, drop);
      thin::swiglu_backward(*plain_, plan, dgate, dup, dy, gate, up, ds, parts, drop);
    }

    // The masks of all parts in tiles of 64 tokens x 128 columns: one byte for each eight columns.
    static std::vector<std::uint8_t> masks(std::int64_t rows, std::int64_t cols,
                                           std::span<const ThinPart> parts,
                                           const InputDropout& drop) {
      const std::int64_t across = (cols + 127) / 128, n = std::ssize(parts);
      std::vector<std::uint8_t> bits(
          static_cast<std::size_t>((rows + 63) / 64 * across * n * 1024));
      const std::uint32_t threshold = dropout_threshold(drop.p);
      for (std::int64_t p = 0; p < n; ++p) {
        const RandomKey key = drop.key_of(parts[static_cast<std::size_t>(p)]).resolved();
        for (std::int64_t i = 0; i < rows * cols; ++i) {
          const std::int64_t row = i / cols, col = i % cols,
                             tile = (row / 64 * across + col / 128) * n + p,
                             at = tile * 1024 + row % 64 * 16 + col % 128 / 8;
          if (dropout_keeps(key, static_cast<std::uint64_t>(i), threshold))
            bits[static_cast<std::size_t>(at)] |= static_cast<std::uint8_t>(1 << col % 8);
        }
      }
      return bits;
    }
    void look(const Tensor& wide, std::span<const ThinPart> parts, const InputDropout& drop) {
      if (drop.p == 0) return;
      ++counts_.read;
      counts_.intact =
          counts_.intact && drop.bits.defined() &&
          to_host<std::uint8_t>(drop.bits) == masks(wide.rows(), wide.cols(), parts, drop);
    }
    std::unique_ptr<Backend> plain_ = make_cpu_backend(CpuMode::Reference);
    Counts& counts_;
  };
  Kernels kernels_;
};

}  // namespace lk::test
