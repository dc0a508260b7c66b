// Projections of a few rows with weights of ggml's blocks.
#include "cuda/block_decoders.cuh"
#include "cuda/linear_few_quantised.cuh"

namespace lk {

void linear_few_blocks(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const QuantisedFormat& format = parts[0].w->quantised()->format;
  const auto run = [&]<class Decoder>() { launch_linear_few_quantised<Decoder>(x, parts, stream); };
  blocks::with_decoder(*format.blocks, run);
}

}  // namespace lk
