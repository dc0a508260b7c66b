// Scratch whose size the kernels and the plan (plan.cpp) share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "tensor/backend.h"
#include "tensor/weight.h"

namespace lk {

// Bytes that cuBLASLt may use, from a CUDA backend's first product on. Hopper's kernels want this
// much.
inline constexpr std::size_t kGemmWorkspaceBytes = std::size_t{32} << 20;

// Numbers whose squares are one partial sum of the gradient's norm (optim.cu).
inline constexpr std::int64_t kSumPiece = 4096;

// Whether a product of so many rows reads a quantised matrix's codes as they lie (linear_few.h) instead of
// dequantising it into scratch.
inline bool takes_codes(std::int64_t rows, const Weight& w) {
  if (!w.quantised() || !w.has_values() || w.dtype() != DType::BF16) return false;
  const QuantisedFormat& f = w.quantised()->format;
  const std::int64_t K = w.shape()[1];
  const bool whole = f.encoding == Encoding::Blocks || f.block % 8 == 0 || f.block >= K;
  return rows >= 1 && rows <= 32 && K % 8 == 0 && whole;
}

// attention/backward_one_pass.cu serves documents of at least kOnePassLength tokens on average, in BF16 with
// heads of 64 to 128 columns. A block owns kOnePassKeys keys of a head, and there must be kOnePassBlocks of
// them: the longest walk, twice the average one, then ends before the others have. It sums dq in F32,
// by tiles of so many queries of a head, and counts who has added to each tile; the last count numbers
// blocks.
inline constexpr std::int64_t kOnePassLength = 1024, kOnePassKeys = 128, kOnePassBlocks = 256;
struct BackwardSums {
  std::int64_t queries, slots;  // of a tile; tiles of all heads, 0: not in one pass
  std::int64_t width;           // of a head in the sums: its size or, padded, 128
};
inline BackwardSums backward_sums(DType dtype, const AttentionShape& shape, std::int64_t tokens,
                                  std::int64_t documents) {
  const std::int64_t width = shape.head_dim == 64 ? 64 : 128, queries = width == 64 ? 128 : 64;
  const bool one_pass = dtype == DType::BF16 && shape.head_dim >= 64 && shape.head_dim <= 128 &&
                        tokens >= kOnePassLength * documents &&
                        shape.n_kv_heads * tokens >= kOnePassKeys * kOnePassBlocks;
  return {queries, one_pass ? shape.n_heads * (tokens / queries + documents) : 0, width};
}

// How attention/shared_keys.cu cuts the rows (tokens * group) of a key/value head for the gradients
// of n keys of `width` = G*D columns: `count` chunks of `rows` rows, whose partial sums are
// (2 count, n * width) F32. At most 64 chunks, and 16 MiB of sums where more than one is needed.
struct SharedKeyChunks {
  std::int64_t count, rows;
};
inline SharedKeyChunks shared_key_chunks(std::int64_t n_rows, std::int64_t n_keys,
                                         std::int64_t width) {
  const std::int64_t affordable =
      (std::int64_t{4} << 20) / std::max<std::int64_t>(2 * n_keys * width, 1);
  const std::int64_t most = std::clamp<std::int64_t>(affordable, 1, 64);
  const std::int64_t wanted = std::clamp<std::int64_t>(n_rows / 128, 1, most);
  const std::int64_t rows = (n_rows + wanted - 1) / wanted + 15;
  const std::int64_t whole = std::max<std::int64_t>(rows / 16 * 16, 16);  // whole tiles of rows
  return {std::max<std::int64_t>((n_rows + whole - 1) / whole, 1), whole};
}

}  // namespace lk
