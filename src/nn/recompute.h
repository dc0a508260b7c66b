// Recompute: what a training step computes again in backward instead of keeping it from forward.
//
// Note [Recompute ladder]: five ways to run a block, each keeping less and costing more:
//   none            everything that backward reads is kept
//   gate-up         the feed-forward half keeps its input alone: gate and up, a step's largest
//                   activations, are one product to make again
//   keep-attention  the block keeps its input and attention's outputs, o (T,H*D) and lse (H,T), and
//                   runs again but for attention, whose cost alone grows with the square of a row
//   block           the block keeps its input alone and runs again as a whole
//   offload         as block, or as keep-attention where that is chosen too and block is not; and
//                   what the block keeps waits in host memory, from which it is fetched one block
//                   ahead. What the last block keeps is wanted at once and stays
// The same kernels run in the same order, so every way gives the same bits.
//
// Each way applies to the first n layers; where several do, the strongest wins. It is the first
// layers because memory peaks between forward and backward: what the first layers compute again
// comes when the later layers' activations are gone, while a block run again at the end would come
// on top of everything.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

class Backend;

enum class RecomputeKind : std::uint8_t { None, GateUp, KeepAttention, Block };

struct Recompute {
  static constexpr std::int64_t kAllLayers = INT64_MAX;
  // The first so many layers.
  std::int64_t gate_up = 0, keep_attention = 0, block = 0, offload = 0;

  RecomputeKind of(std::int64_t layer) const;
  bool offloads(std::int64_t layer, std::int64_t n_layers) const {
    return layer < offload && layer + 1 < n_layers;
  }
  bool operator==(const Recompute&) const = default;
};

// Throws UsageError if the device can't recompute that way.
void require_possible(const Recompute& recompute, const Backend& backend);

// Parses "none", or ways joined by commas, each with its number of layers unless it means all:
// "block", "gate-up:8", "gate-up,block:4". Throws UsageError naming --recompute.
Recompute parse_recompute(const std::string& text);
// The inverse of parse_recompute(): its text form.
std::string recompute_text(const Recompute& recompute);

}  // namespace lk
