// Scratch whose size the kernels and the plan (plan.cpp) share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "tensor/weight.h"

namespace lk {

// Bytes that cuBLASLt may use, from a CUDA backend's first product on. Hopper's kernels want this
// much.
inline constexpr std::size_t kGemmWorkspaceBytes = std::size_t{32} << 20;

// Whether a product of so many rows reads a quantised matrix's codes as they lie (linear_few.h) instead of
// dequantising it into scratch.
inline bool takes_codes(std::int64_t rows, const Weight& w) {
  if (!w.quantised() || !w.has_values() || w.dtype() != DType::BF16) return false;
  const QuantisedFormat& f = w.quantised()->format;
  const std::int64_t K = w.shape()[1];
  const bool whole = f.encoding == Encoding::Blocks || f.block % 8 == 0 || f.block >= K;
  return rows >= 1 && rows <= 32 && K % 8 == 0 && whole;
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
