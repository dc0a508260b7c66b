// Projections of a few rows with NF4, FP4, FP8 and 4-bit integer weights.
#include "cuda/code_decoders.cuh"
#include "cuda/linear_few_quantised.cuh"

namespace lk {

void linear_few_codes(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream) {
  const QuantisedFormat& format = parts[0].w->quantised()->format;
  const auto run = [&]<class Decoder>() { launch_linear_few_quantised<Decoder>(x, parts, stream); };
  codes::with_decoder<true>(format, run);
}

}  // namespace lk
