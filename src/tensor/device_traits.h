// DeviceTraits: what a device does well, as data. The layers above read these answers and never ask
// which device it is.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lk {

struct DeviceTraits {
  // What `--dtype auto` means: BF16 where the device multiplies it natively, else F32.
  DType preferred_dtype = DType::F32;
  bool faster_in_bf16 = false;  // than in F32, where that is preferred all the same
  // Whether training is faster with LoRA's factors next to the frozen matrix (joined projections).
  // It is not where weights are packed once at load.
  bool joins_projections = false;
  // Whether generation is faster on weights kept in a file's blocks than on dense ones.
  bool prefers_quantised = false;
  // Whether record() can record. Numbers that change from step to step must then lie on the device.
  bool can_record = false;
  // Whether the device's memory is separate from the host's, so that offload() makes sense.
  bool can_offload = false;
  // Bytes of logits that the loss holds at a time: a CPU wants them near its cache, a GPU wants
  // thousands of rows.
  std::int64_t loss_bytes = std::int64_t{32} << 20;
  // Prompt rows that one pass of generation takes.
  std::int64_t prefill_rows = 512;
  // Bytes of scratch that a memory plan does not count.
  std::int64_t uncounted_bytes = 0;
};

}  // namespace lk
