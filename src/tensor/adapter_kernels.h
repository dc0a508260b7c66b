// AdapterKernels: LoRA adapters that live side by side (lora/adapter_set.h), each document of a
// batch going through its own. Inference only.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/backend.h"

namespace lk {

// Which variant of a model each document of a batch goes through, where several live side by side;
// -1 is the model itself.
struct RowVariants {
  std::vector<std::int32_t> host;  // one a document
  Tensor device;                   // the same on the device, I32 (n)
};

// The LoRA factors of one variant on one projection: a (R,K), b_t (R,N) is B transposed, both
// contiguous and of the compute dtype; undefined if the variant leaves the projection alone.
struct LoraFactors {
  Tensor a, b_t;
  float scale = 0;
};
// The same as kernels read it.
struct LoraEntry {
  const void *a, *b_t;
  std::int32_t rank;  // 0: nothing to add
  float scale;
};
// All variants' factors on one projection.
struct LoraTable {
  std::vector<LoraFactors> host;
  Tensor device;  // U8: a LoraEntry each
  std::int64_t max_rank = 0;
};
LoraTable make_lora_table(Backend& backend, std::vector<LoraFactors> variants);

class AdapterKernels {
 public:
  virtual ~AdapterKernels() = default;

  // Rows of document i of y (T,N) += scale (x Aᵀ) Bᵀ, with the factors of variant variants[i] in
  // `table`; x (T,K). x Aᵀ may be rounded to the compute dtype. Sums of a row do not depend on the
  // other documents.
  virtual void lora_segments(const Tensor& y, const Tensor& x, const LoraTable& table,
                             const Segments& documents, const RowVariants& variants) = 0;
};

}  // namespace lk
