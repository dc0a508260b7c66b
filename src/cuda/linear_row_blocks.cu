// Projections of one to four rows with weights of ggml's blocks.
#include "cuda/block_operands.cuh"
#include "cuda/integer_row.cuh"

namespace lk {

bool linear_row_blocks(const Tensor& x, const MadeInput* input, std::span<const LinearPart> parts,
                       cudaStream_t stream) {
  const auto run = [&]<class Format>() {
    return launch_integer_row<Format>(x, input, parts, stream);
  };
  return operands::with_blocks(*parts[0].w->quantised()->format.blocks, run);
}

}  // namespace lk
