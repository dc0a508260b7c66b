// DeviceTraits: what a device does well, as data. The layers above read these answers and never ask
// which device it is.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lk {

struct DeviceTraits {
  // What `--dtype auto` means: BF16 where the device multiplies it natively, else F32.
  DType preferred_dtype = DType::F32;
  // Does training run faster with LoRA's factors beside the frozen matrix? Not where weights are
  // packed once at load.
  bool joins_projections = false;
  // Does generation run faster on weights kept in a file's blocks than on dense ones?
  bool prefers_quantised = false;
  // Can record() record, so that numbers which change from step to step must lie on the device?
  bool can_record = false;
  // Has the device memory apart from the host's, so that offload() makes sense?
  bool can_offload = false;
  // Logits that the loss holds at a time, in bytes.
  std::int64_t loss_bytes = std::int64_t{32} << 20;
  // Rows of prompts that one pass of generation takes.
  std::int64_t prefill_rows = 512;
  // Room for scratch that a memory plan does not count, in bytes.
  std::int64_t uncounted_bytes = 0;
};

}  // namespace lk
