// What the layers above may know about a GPU. Includes no CUDA header: plans are made without CUDA.
#pragma once

#include "tensor/device_traits.h"

namespace lk {

inline constexpr DeviceTraits kCudaTraits = {
    .preferred_dtype = DType::BF16,
    .joins_projections = true,
    .can_record = true,
    .can_offload = true,
    .loss_bytes = std::int64_t{512} << 20,
    .prefill_rows = 4096,
};

}  // namespace lk
