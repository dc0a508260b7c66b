// Projections of one to four rows with NF4, FP4, FP8 and 4-bit integer weights.
#include "cuda/code_operands.cuh"
#include "cuda/linear_row.cuh"

namespace lk {

bool linear_row_codes(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const auto run = [&]<class Format>() { return launch_linear_row<Format>(x, parts, stream); };
  const Weight& w = *parts[0].w;
  return operands::with_codes(w.quantised()->format, w.shape()[0], x.cols(), run);
}

}  // namespace lk
