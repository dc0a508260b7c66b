// What the layers above may know about a CPU.
#pragma once

#include "tensor/device_traits.h"

namespace lk {

inline constexpr DeviceTraits kCpuTraits = {
    .preferred_dtype = DType::F32,
    .prefers_quantised = true,  // a token reads each weight once
    .loss_bytes = std::int64_t{32} << 20,
    .prefill_rows = 512,
    .uncounted_bytes = std::int64_t{4} << 20,
};

}  // namespace lk
