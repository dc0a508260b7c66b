// Scratch whose size the kernels and the plan (plan.cpp) share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lk {

// Bytes that cuBLASLt may use, from a CUDA backend's first product on. Hopper's kernels want this
// much.
inline constexpr std::size_t kGemmWorkspaceBytes = std::size_t{32} << 20;

}  // namespace lk
