// ModelWeights: the frozen tensors of a decoder.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/family.h"
#include "tensor/weight.h"

namespace lk {

// A projection's weight (out, in) and bias (out), each undefined where the model has none.
struct Projection {
  Weight weight, bias;
};

// The weights of one decoder layer. What the model's config does not ask for is undefined.
struct LayerWeights {
  Weight attn_norm, attn_norm_bias;  // (C)
  Weight q_norm, k_norm;             // (D)
  Weight post_attn_norm;             // (C)
  Weight ffn_norm, ffn_norm_bias;    // (C)
  Weight post_ffn_norm;              // (C)
  // Indexed by Site: qkv ((H+2G)*D, C) instead of q, k and v; q (H*D, C); k, v (G*D, C); o (C,
  // H*D); gate, up (F, C); down (C, F).
  std::array<Projection, kSiteCount> projections;

  Projection& operator[](Site site) { return projections[static_cast<std::size_t>(site)]; }
  const Projection& operator[](Site site) const {
    return projections[static_cast<std::size_t>(site)];
  }
};

struct ModelWeights {
  Weight embedding;  // (V, C)
  Weight positions;  // (P, C), learned
  std::vector<LayerWeights> layers;
  Weight final_norm, final_norm_bias;  // (C)
  Weight head;                         // (V, C); shares the embedding's memory when tied
  bool tied() const { return head.same_memory(embedding); }
};

// One tensor of the model: its Hugging Face name, its shape, and its place in ModelWeights.
struct WeightSlot {
  std::string name;  // "model.layers.0.self_attn.q_proj.weight"
  Role role;
  Shape shape;
  Weight* weight;
  bool linear;         // the matrix of a linear layer, which Backend::prepare_linear packs
  std::int64_t layer;  // that it belongs to, if any
};
// Sizes weights.layers and lists every tensor that `config` asks for, in a fixed order: embedding,
// learned positions, layers, final norm, head (unless tied).
std::vector<WeightSlot> weight_slots(const ModelConfig& config, ModelWeights& weights);
// Calls f(weight) for every defined tensor, in the order of weight_slots(), a tied head once.
void visit_weights(const ModelWeights& weights, const std::function<void(const Weight&)>& f);

// Gives a model with tied embeddings its head: the embedding's memory, prepared as a linear layer.
void tie_head(Backend& backend, ModelWeights& weights);

// Bytes of the blocks in which weights move between host and device, approximately.
inline constexpr std::int64_t kWeightBlockBytes = std::int64_t{16} << 20;
// dst (floating, contiguous) = values, rounded to nearest even. Throws Error on a wrong size.
void upload_rounded(Backend& backend, const Tensor& dst, std::span<const float> values);

// Random weights for benches and tests: uniformly distributed matrices and biases (standard
// deviation 0.02), and gains of 1. The same seed gives the same values on every device. Each is given
// to `made`, if there is one, which may replace it.
ModelWeights random_weights(Backend& backend, const ModelConfig& config, DType dtype,
                            std::uint64_t seed,
                            const std::function<void(const WeightSlot&)>& made = {});

}  // namespace lk
