#include "nn/model_weights.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace lk {
namespace {

template <class T>
void upload_as(Backend& backend, const Tensor& dst, std::span<const float> values) {
  std::vector<T> rounded(values.size());
  const std::int64_t n = static_cast<std::int64_t>(values.size());
#pragma omp parallel for simd if (n > 1 << 16)
  for (std::int64_t i = 0; i < n; ++i)
    rounded[static_cast<std::size_t>(i)] = static_cast<T>(values[static_cast<std::size_t>(i)]);
  backend.upload(dst, rounded.data(), rounded.size() * sizeof(T));
}

}  // namespace

std::vector<WeightSlot> weight_slots(const ModelConfig& c, ModelWeights& w) {
  const Family& family = family_of(c);
  std::vector<WeightSlot> slots;
  const std::int64_t C = c.hidden_size, F = c.intermediate_size, V = c.vocab_size;
  std::int64_t layer = 0;
  auto add = [&](Role role, const char* kind, Shape shape, Weight& weight, bool linear) {
    slots.push_back(
        {module_path(family, role, layer) + kind, role, std::move(shape), &weight, linear, layer});
  };
  auto norm = [&](Role role, Weight& gain, Weight* bias, std::int64_t n) {
    add(role, ".weight", Shape{n}, gain, false);
    if (bias && c.norm == NormKind::Layer) add(role, ".bias", Shape{n}, *bias, false);
  };
  auto linear = [&](Site site, std::int64_t out, std::int64_t in, bool biased) {
    Projection& p = w.layers[static_cast<std::size_t>(layer)][site];
    add(role_of(site), ".weight", Shape{out, in}, p.weight, true);
    if (biased) add(role_of(site), ".bias", Shape{out}, p.bias, false);
  };
  w.layers.resize(static_cast<std::size_t>(c.n_layers));
  add(Role::Embedding, ".weight", Shape{V, C}, w.embedding, false);
  if (c.learned_positions)
    add(Role::Positions, ".weight", Shape{c.max_position, C}, w.positions, false);
  for (; layer < c.n_layers; ++layer) {
    LayerWeights& l = w.layers[static_cast<std::size_t>(layer)];
    norm(Role::AttnNorm, l.attn_norm, &l.attn_norm_bias, C);
    if (c.joined_qkv) {
      linear(Site::Qkv, c.q_size() + 2 * c.kv_size(), C, c.attention_bias);
    } else {
      linear(Site::Q, c.q_size(), C, c.attention_bias);
      linear(Site::K, c.kv_size(), C, c.attention_bias);
      linear(Site::V, c.kv_size(), C, c.attention_bias);
    }
    if (c.qk_norm) {
      norm(Role::QNorm, l.q_norm, nullptr, c.head_dim);
      norm(Role::KNorm, l.k_norm, nullptr, c.head_dim);
    }
    linear(Site::O, C, c.q_size(), c.attention_output_bias);
    if (c.sandwich_norms) norm(Role::PostAttnNorm, l.post_attn_norm, nullptr, C);
    norm(Role::FfnNorm, l.ffn_norm, &l.ffn_norm_bias, C);
    if (c.mlp != MlpKind::Gelu) linear(Site::Gate, F, C, c.mlp_bias);
    linear(Site::Up, F, C, c.mlp_bias);
    linear(Site::Down, C, F, c.mlp_bias);
    if (c.sandwich_norms) norm(Role::PostFfnNorm, l.post_ffn_norm, nullptr, C);
  }
  norm(Role::FinalNorm, w.final_norm, &w.final_norm_bias, C);
  if (!c.tie_embeddings) add(Role::Head, ".weight", Shape{V, C}, w.head, true);
  return slots;
}

void visit_weights(const ModelWeights& w, const std::function<void(const Weight&)>& f) {
  auto visit = [&](std::initializer_list<const Weight*> weights) {
    for (const Weight* weight : weights)
      if (weight->defined()) f(*weight);
  };
  visit({&w.embedding, &w.positions});
  for (const LayerWeights& l : w.layers) {
    auto visit_sites = [&](std::initializer_list<Site> sites) {
      for (Site s : sites) visit({&l[s].weight, &l[s].bias});
    };
    visit({&l.attn_norm, &l.attn_norm_bias});
    visit_sites({Site::Qkv, Site::Q, Site::K, Site::V});
    visit({&l.q_norm, &l.k_norm});
    visit_sites({Site::O});
    visit({&l.post_attn_norm, &l.ffn_norm, &l.ffn_norm_bias});
    visit_sites({Site::Gate, Site::Up, Site::Down});
    visit({&l.post_ffn_norm});
  }
  visit({&w.final_norm, &w.final_norm_bias});
  if (!w.tied()) visit({&w.head});
}

void tie_head(Backend& backend, ModelWeights& w) {
  // What is quantised was prepared by whoever loaded it, and embedding and head read one form.
  w.head = w.embedding.renamed("lm_head.weight");
  if (!w.embedding.quantised()) backend.prepare_linear(w.head);
}

void upload_rounded(Backend& backend, const Tensor& dst, std::span<const float> values) {
  if (dst.dtype() == DType::F32) {
    backend.upload(dst, values.data(), values.size_bytes());
  } else {
    dispatch_float(dst.dtype(), [&]<class T>() { upload_as<T>(backend, dst, values); });
  }
}

ModelWeights random_weights(Backend& backend, const ModelConfig& config, DType dtype,
                            std::uint64_t seed,
                            const std::function<void(const WeightSlot&)>& made) {
  validate(config, "random_weights");
  ModelWeights weights;
  std::uint32_t site = 0;
  const float bound = 0.02f * std::sqrt(3.0f);  // standard deviation: bound / sqrt(3)
  for (WeightSlot& slot : weight_slots(config, weights)) {
    Tensor t = backend.empty(Tag::Weights, dtype, slot.shape);
    ++site;
    if (slot.shape.rank() == 1 && slot.name.ends_with(".weight")) {
      backend.fill(t, 1.0);  // the gain of a norm
    } else {
      backend.uniform(t, bound, {seed, 0, site});
    }
    *slot.weight = Weight(slot.name, std::move(t));
    if (slot.linear) backend.prepare_linear(*slot.weight);
    if (made) made(slot);
  }
  if (config.tie_embeddings) tie_head(backend, weights);
  return weights;
}

}  // namespace lk
