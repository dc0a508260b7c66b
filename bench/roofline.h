// The yardsticks of a bench, timed in its own process on its own backend: how fast this device
// copies and multiplies, and how long the products take that no LoRA step can avoid.
#pragma once

#include <functional>

#include "nn/transformer.h"
#include "timing_backend.h"

namespace lk::bench {

// Uniform in (-1, 1), contiguous: multiplying zeros takes less power and is faster. A block of
// numbers is repeated, so that large tensors are made quickly. Tag::Workspace.
Tensor random_tensor(Backend& backend, DType dtype, Shape shape, unsigned seed);

// Seconds of call() on the device's clock: the median of `runs` in a row, after one to warm up.
double median_seconds(Backend& backend, int runs, const std::function<void()>& call);

// Measures a square product in `dtype` through matmul_nt (8192 wide on a GPU, 2048 on a CPU) and a
// copy of 1 GiB (64 MiB on a CPU). Takes nothing from data sheets.
Roofs measure_roofs(Backend& backend, DType dtype);

// The vendor's figure for dense BF16 products, in FLOP/s, for cards known by name; else 0.
double nominal_bf16_flops(const std::string& description);

// The frozen-GEMM limit: seconds for y = x wᵀ and dx = dy w of every projection of the blocks and
// of the head on n_tokens tokens, back to back, in the order of a step, with the model's own
// weights (`dtype` is x's and y's); the median of `runs` sweeps. `adapted` holds the paths of the
// layers with an adapter: a dX with nothing trainable before it (in the first layer) is left out,
// as in training.
double frozen_gemm_seconds(Backend& backend, const ModelWeights& weights, DType dtype,
                           const std::vector<std::string>& adapted, std::int64_t n_tokens,
                           int runs);

// Elements of the frozen matrices that a token is multiplied with: projections and head.
std::int64_t matmul_parameters(const ModelConfig& config);
// Useful FLOPs of a LoRA step per token: 4 P for the frozen matrices (forward and dX, no dW), and
// attention's causal half, two products forward and four backward. A and B, and work done twice
// (recompute, attention's scores in backward), do not count. MFU = this * tokens/s / peak.
double useful_flops_per_token(const ModelConfig& config, std::int64_t seq_len);

}  // namespace lk::bench
