// AdapterKernels: LoRA adapters that live next to each other on one model (lora/adapter_set.h),
// where each document of a batch goes through its own. Inference only.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/backend.h"

namespace lk {

// Which variant of the model each document of a batch goes through; -1 is the model without an
// adapter.
struct RowVariants {
  std::vector<std::int32_t> host;  // one per document
  Tensor device;                   // the same indices on the device, I32 (n)
};

// The LoRA factors of one variant on one projection: a (R,K), and b_t (R,N), which is B transposed.
// Both are contiguous and of the compute dtype; undefined if the variant leaves the projection
// alone.
struct LoraFactors {
  Tensor a, b_t;
  float scale = 0;
};
// LoraFactors in the form that kernels read.
struct LoraEntry {
  const void *a, *b_t;
  std::int32_t rank;  // 0: nothing to add
  float scale;
};
// The factors of all variants on one projection.
struct LoraTable {
  std::vector<LoraFactors> host;
  Tensor device;  // U8: one LoraEntry per variant
  std::int64_t max_rank = 0;
};
LoraTable make_lora_table(Backend& backend, std::vector<LoraFactors> variants);

class AdapterKernels {
 public:
  virtual ~AdapterKernels() = default;

  // Adds to the rows of document i of y (T,N): scale (x Aᵀ) Bᵀ, with the factors of variant
  // variants[i] in `table`; x is (T,K). x Aᵀ may be rounded to the compute dtype. A row's sums do
  // not depend on the other documents.
  virtual void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                             const Segments& documents, const RowVariants& variants) = 0;
};

}  // namespace lk
