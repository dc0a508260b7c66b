// ThinPlan: how LoRA's thin products through joined projections run on a GPU.
//
// Note [Thin plan]: a wide matrix (T,N) or (T,K) meets thin ones (T,S), S columns for all ranks
// (autograd/joined.h). Kernels of our own (cuda/lora/) read the wide matrix once for all of them,
// if its shape suits; otherwise each product is composed of the core's ops (autograd/thin.h). Which
// of the two serves a shape, how the work is cut and what scratch it takes is decided here, once,
// when projections are joined. The kernels, their launchers and the memory plan, which has no GPU,
// all read it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/shape.h"

namespace lk {

// Joined projections as far as kernels are concerned: K, N and S, and the parts that have an
// adapter.
struct ThinShape {
  struct Part {
    std::int64_t begin = 0, end = 0;    // rows of W: columns of dy
    std::int64_t column = 0, rank = 0;  // columns of s and ds
  };
  std::int64_t in = 0, out = 0, thin = 0;
  DType dtype = DType::F32;
  bool dropout = false;  // on the input of A
  std::vector<Part> parts;
};

// The work of one product on T tokens. A block owns `rows` tokens and `tiles_per_slab` tiles of
// kColumns columns. Where several blocks share a sum, they leave partial sums (F32) in scratch, one
// per slab, which a second kernel adds in order. The cut depends on the shape alone, so every run
// gives the same bits.
struct ThinCut {
  int rows = 0, tiles_per_slab = 0;
  int row_slabs = 0, column_slabs = 0;
  std::optional<Shape> partial_dw;  // for dA or dB: (row_slabs, columns, 16 sixteens)
  std::optional<Shape> partial_s;   // for s or ds: (column_slabs, T, thin columns)
};

class ThinPlan {
 public:
  static constexpr int kColumns = 128, kMostParts = 4;
  static constexpr std::int64_t kMostThin = 96;  // of all parts together
  static constexpr int kMaskRows = 64;           // tokens in a tile of kept bits
  // The thin columns that a part takes: all begin where kernels may read 16 bytes of BF16 at once.
  static constexpr std::int64_t columns_of(std::int64_t rank) { return (rank + 7) / 8 * 8; }

  ThinPlan() = default;  // every product is composed
  explicit ThinPlan(const ThinShape& shape);

  // The kernel that runs a product, named by the number of 16-column groups of thin columns that it
  // is compiled for; 0: there is none, the product is composed. autograd/thin.h defines the
  // products.
  int forward() const { return forward_; }
  int into_x() const { return forward_; }
  int backward_b() const { return backward_b_; }
  int backward_a() const { return backward_a_; }
  int swiglu_backward() const { return swiglu_backward_; }

  // How the kernel's work on `tokens` tokens is cut. Call it only where there is a kernel.
  ThinCut cut_forward(std::int64_t tokens) const;
  ThinCut cut_backward_b(std::int64_t tokens) const;
  ThinCut cut_backward_a(std::int64_t tokens) const;
  ThinCut cut_swiglu_backward(std::int64_t tokens) const;

  // Memory for dropout's masks from forward to backward, in bytes: (tiles of kMaskRows tokens, tiles
  // of kColumns columns, parts, a tile's bits). Nothing where forward is composed.
  std::optional<Shape> kept_bits(std::int64_t tokens) const;

  // The most tokens per block of a backward kernel: fewer where the sums of ds, or the thin rows,
  // would leave no room for a second resident block. A cut takes this number or half of it.
  static constexpr int most_rows(int sixteens, bool with_ds) {
    return sixteens <= (with_ds ? 1 : 3) ? 512 : 256;
  }

 private:
  int forward_ = 0, backward_b_ = 0, backward_a_ = 0, swiglu_backward_ = 0;
  std::int64_t in_ = 0, out_ = 0, thin_ = 0;
  std::vector<std::int64_t> widths_;  // columns of dy of each part
};

}  // namespace lk
