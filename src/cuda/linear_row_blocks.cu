// Projections of one to four rows with weights of ggml's blocks.
#include "cuda/block_operands.cuh"
#include "cuda/linear_row.cuh"

namespace lk {

bool linear_row_blocks(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const auto run = [&]<class Format>() { return launch_linear_row<Format>(x, parts, stream); };
  return operands::with_blocks(*parts[0].w->quantised()->format.blocks, run);
}

}  // namespace lk
