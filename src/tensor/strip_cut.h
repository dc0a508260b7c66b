// How cuda/lora/linear_strips.cu, swiglu_strips.cu and strips_dropout.cu cut their work, and so what
// scratch they take: for them, and for the plan, which has to say it without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "tensor/backend.h"

namespace lk::strips {

inline constexpr int kColumns = 128, kMaxParts = 4;
// Two and three for each multiprocessor of an H100, all at once.
inline constexpr std::int64_t kBlocks = 264, kSwigluBlocks = 396;
// Thin columns: of one part, with ds; of all parts together, without; with swiglu's backward.
inline constexpr int kMostRankB = 32;
inline constexpr std::int64_t kMostThinA = 96;
inline constexpr std::int64_t kMostThinSwiglu = 32;

// The most tokens of a block: fewer where the sums of ds, or the thin rows, would leave no room for
// a second block beside it. `nr`: sixteens of thin columns.
constexpr int most_rows(int nr, bool with_ds) { return nr <= (with_ds ? 1 : 3) ? 512 : 256; }
// Sixteens of thin columns that a kernel is compiled for.
constexpr int sixteens_b(std::int64_t largest_rank) { return largest_rank <= 16 ? 1 : 2; }
constexpr int sixteens_a(std::int64_t thin_columns) {
  const auto nr = static_cast<int>((thin_columns + 15) / 16);
  return nr <= 4 ? std::max(nr, 1) : 6;
}

// Do the kernels take these ranks? What they ask of memory comes on top.
inline bool ranks_fit(std::span<const StripPart> parts) {
  if (parts.empty() || parts.size() > kMaxParts) return false;
  for (const StripPart& part : parts)
    if (part.rank % 8 || part.column % 8 || part.begin % 8 || part.end % 8) return false;
  return true;
}
inline std::int64_t largest_rank(std::span<const StripPart> parts) {
  std::int64_t rank = 0;
  for (const StripPart& part : parts) rank = std::max(rank, part.rank);
  return rank;
}

constexpr std::int64_t slabs(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

// How many column tiles a block takes, so that all blocks are resident at once if they can.
inline int tiles_per_slab(std::int64_t row_slabs, const std::vector<std::int64_t>& widths,
                          std::int64_t most) {
  std::int64_t tiles = 0;
  for (std::int64_t w : widths) tiles += slabs(w, kColumns);
  std::int64_t per_slab = std::max<std::int64_t>(1, tiles * row_slabs / most);
  auto blocks = [&] {
    std::int64_t n = 0;
    for (std::int64_t w : widths) n += slabs(slabs(w, kColumns), per_slab);
    return n * row_slabs;
  };
  while (blocks() > most && per_slab < tiles) ++per_slab;
  return static_cast<int>(per_slab);
}

// A product with dropout (cuda/lora/strips_dropout.cu): slabs of columns for each 64 tokens.
inline std::int64_t forward_slabs(std::int64_t tokens, std::int64_t columns) {
  const std::int64_t row_blocks = std::max<std::int64_t>(slabs(tokens, 64), 1);
  const std::int64_t tiles = std::max<std::int64_t>(slabs(columns, kColumns), 1);
  return std::clamp<std::int64_t>(kBlocks / row_blocks, 1, tiles);
}

struct Cut {
  int rows = 0, tiles_per_slab = 0;  // of a block: tokens, and tiles of 128 columns
  int row_slabs = 0, column_slabs = 0;
};

// Of the wide matrix: `tokens` rows, parts of so many columns. A block takes most_rows or half of
// them: half where blocks would be too few or too uneven for the device. What is weighed: tiles one
// after the other, and the partial sums, which halves double.
inline Cut cut(std::int64_t tokens, const std::vector<std::int64_t>& widths, int nr, bool with_ds,
               std::int64_t most_blocks) {
  auto with_rows = [&](int rows) {
    Cut c{.rows = rows, .row_slabs = static_cast<int>(slabs(tokens, rows))};
    c.tiles_per_slab = tiles_per_slab(c.row_slabs, widths, most_blocks);
    for (std::int64_t w : widths)
      c.column_slabs += static_cast<int>(slabs(slabs(w, kColumns), c.tiles_per_slab));
    return c;
  };
  auto cost = [&](const Cut& c) {
    const std::int64_t waves =
        slabs(static_cast<std::int64_t>(c.row_slabs) * c.column_slabs, most_blocks);
    return waves * c.tiles_per_slab * (c.rows + 64 * nr);
  };
  const Cut whole = with_rows(most_rows(nr, with_ds)), half = with_rows(whole.rows / 2);
  return cost(half) < cost(whole) ? half : whole;
}

}  // namespace lk::strips
