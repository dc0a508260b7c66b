// Quantising a dense base as it is loaded.
//
//   nf4, fp4  blocks of 64 elements of the flattened matrix, nested scales: bitsandbytes' way with
//             double quantisation. Dettmers et al., "QLoRA", 2023.
//   fp8       E4M3 with a scale for each row, its largest magnitude / 448
//
// Codes are those of bitsandbytes but for the mean of the scales, which it sums in another order.
#pragma once

#include <functional>

#include "modelfile/host_planes.h"

namespace lk {

// Writes rows [begin, end) of the matrix as F32.
using ReadRows = std::function<void(std::int64_t begin, std::int64_t end, float* dst)>;

// The format that `encoding` (Nf4, Fp4 or Fp8) gives a matrix (N,K).
QuantisedFormat own_format(Encoding encoding, const Shape& shape);

// Reads the matrix in parts of `step` rows and quantises it with all threads.
HostPlanes quantise(Encoding encoding, const Shape& shape, std::int64_t step, const ReadRows& read);

// The 256 values of bitsandbytes' signed dynamic map, ascending.
std::array<float, 256> dynamic_map();

}  // namespace lk
