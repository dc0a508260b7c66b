#include "tensor/thin_plan.h"

#include <algorithm>

namespace lk {
namespace {

constexpr std::int64_t kColumns = ThinPlan::kColumns;
// Two and three blocks for each multiprocessor of an H100, all resident at once.
constexpr std::int64_t kBlocks = 264, kSwigluBlocks = 396;
constexpr std::int64_t kMostRankB = 32;       // of one part, for the product that makes ds
constexpr std::int64_t kMostThinSwiglu = 32;  // of all parts, for swiglu's backward
constexpr std::int64_t kForwardRows = 64;     // tokens per block of the forward kernel

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

// Groups of 16 thin columns that kernels are compiled for: 1, 2, 3, 4 and 6.
constexpr int sixteens_of(std::int64_t thin_columns) {
  const auto n = static_cast<int>(ceil_div(thin_columns, 16));
  return n <= 4 ? std::max(n, 1) : 6;
}

// Whether the parts' columns start at multiples of 16 bytes of BF16, the wide matrix's end there too.
// Rows then do as well: joined projections and the tensors that they meet have margins in multiples
// of 16 (lora/joined.cpp).
bool aligned(const ThinShape& shape) {
  auto eights = [](std::int64_t n) { return n % 8 == 0; };
  return eights(shape.in) && eights(shape.out) && eights(shape.thin) &&
         std::all_of(shape.parts.begin(), shape.parts.end(), [&](const ThinShape::Part& p) {
           return eights(p.begin) && eights(p.end) && eights(p.column);
         });
}

// How many column tiles a block takes, so that all blocks are resident at once if possible.
int tiles_per_slab(std::int64_t row_slabs, const std::vector<std::int64_t>& widths,
                   std::int64_t most) {
  std::int64_t tiles = 0;
  for (std::int64_t w : widths) tiles += ceil_div(w, kColumns);
  std::int64_t per_slab = std::max<std::int64_t>(1, tiles * row_slabs / most);
  auto blocks = [&] {
    std::int64_t n = 0;
    for (std::int64_t w : widths) n += ceil_div(ceil_div(w, kColumns), per_slab);
    return n * row_slabs;
  };
  while (blocks() > most && per_slab < tiles) ++per_slab;
  return static_cast<int>(per_slab);
}

// Cuts the work of a backward kernel over parts of the given widths. A block takes most_rows or
// half of them: half where there would be too few blocks, or too uneven ones, for the device. The
// choice weighs how many tiles run one after the other against the partial sums, which double when
// rows are halved.
ThinCut cut_backward(std::int64_t tokens, const std::vector<std::int64_t>& widths, int sixteens,
                     bool with_ds, std::int64_t most_blocks) {
  auto with_rows = [&](int rows) {
    ThinCut c;
    c.rows = rows;
    c.row_slabs = static_cast<int>(ceil_div(tokens, rows));
    c.tiles_per_slab = tiles_per_slab(c.row_slabs, widths, most_blocks);
    for (std::int64_t w : widths)
      c.column_slabs += static_cast<int>(ceil_div(ceil_div(w, kColumns), c.tiles_per_slab));
    return c;
  };
  auto cost = [&](const ThinCut& c) {
    const std::int64_t waves =
        ceil_div(static_cast<std::int64_t>(c.row_slabs) * c.column_slabs, most_blocks);
    return waves * c.tiles_per_slab * (c.rows + 64 * sixteens);
  };
  const ThinCut whole = with_rows(ThinPlan::most_rows(sixteens, with_ds)),
                half = with_rows(whole.rows / 2);
  return cost(half) < cost(whole) ? half : whole;
}

}  // namespace

ThinPlan::ThinPlan(const ThinShape& shape) : in_(shape.in), out_(shape.out), thin_(shape.thin) {
  std::int64_t largest_rank = 0;
  for (const ThinShape::Part& p : shape.parts) {
    widths_.push_back(p.end - p.begin);
    largest_rank = std::max(largest_rank, p.rank);
  }
  if (shape.dtype != DType::BF16 || shape.parts.empty() || shape.parts.size() > kMostParts ||
      !aligned(shape))
    return;
  if (largest_rank <= kMostRankB) backward_b_ = largest_rank <= 16 ? 1 : 2;
  if (thin_ <= kMostThin) forward_ = backward_a_ = sixteens_of(thin_);
  if (thin_ <= kMostThinSwiglu && (!shape.dropout || shape.parts.size() == 1))
    swiglu_backward_ = sixteens_of(thin_);
}

ThinCut ThinPlan::cut_forward(std::int64_t tokens) const {
  const std::int64_t tiles = std::max<std::int64_t>(ceil_div(in_, kColumns), 1);
  const std::int64_t row_slabs = std::max<std::int64_t>(ceil_div(tokens, kForwardRows), 1);
  ThinCut c;
  c.rows = static_cast<int>(kForwardRows);
  c.row_slabs = static_cast<int>(row_slabs);
  c.tiles_per_slab =
      static_cast<int>(ceil_div(tiles, std::clamp<std::int64_t>(kBlocks / row_slabs, 1, tiles)));
  c.column_slabs = static_cast<int>(ceil_div(tiles, c.tiles_per_slab));
  if (c.column_slabs > 1) c.partial_s = Shape{c.column_slabs, tokens, thin_};
  return c;
}

std::optional<Shape> ThinPlan::kept_bits(std::int64_t tokens) const {
  if (forward_ == 0) return std::nullopt;
  return Shape{ceil_div(tokens, kMaskRows), ceil_div(in_, kColumns), std::ssize(widths_),
               kMaskRows * kColumns / 8};
}

ThinCut ThinPlan::cut_backward_b(std::int64_t tokens) const {
  ThinCut c = cut_backward(tokens, widths_, backward_b_, true, kBlocks);
  c.partial_dw = Shape{c.row_slabs, out_, 16 * backward_b_};
  c.partial_s = Shape{c.column_slabs, tokens, 16 * backward_b_};
  return c;
}

ThinCut ThinPlan::cut_backward_a(std::int64_t tokens) const {
  ThinCut c = cut_backward(tokens, {in_}, backward_a_, false, kBlocks);
  c.partial_dw = Shape{c.row_slabs, in_, 16 * backward_a_};
  return c;
}

ThinCut ThinPlan::cut_swiglu_backward(std::int64_t tokens) const {
  ThinCut c = cut_backward(tokens, {in_}, swiglu_backward_, false, kSwigluBlocks);
  c.partial_dw = Shape{c.row_slabs, in_, 16 * swiglu_backward_};
  return c;
}

}  // namespace lk
