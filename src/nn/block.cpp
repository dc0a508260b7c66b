#include "nn/block.h"

#include <cmath>

namespace lk {

const char* site_path(Site site) {
  static constexpr const char* kPaths[] = {
      "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
      "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  return kPaths[static_cast<int>(site)];
}

const char* site_name(Site site) {
  static constexpr const char* kNames[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                           "gate_proj", "up_proj", "down_proj"};
  return kNames[static_cast<int>(site)];
}

Block::Block(const ModelConfig& config, LayerWeights w, std::size_t index)
    : index_(index),
      head_dim_(static_cast<int>(config.head_dim)),
      eps_(config.rms_eps),
      attn_norm_(std::move(w.attn_norm)),
      ffn_norm_(std::move(w.ffn_norm)) {
  attention_.n_heads = static_cast<int>(config.n_heads);
  attention_.n_kv_heads = static_cast<int>(config.n_kv_heads);
  attention_.head_dim = head_dim_;
  attention_.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_)));
  site(Site::Q) = std::make_unique<FrozenLinear>(std::move(w.q), std::move(w.q_bias));
  site(Site::K) = std::make_unique<FrozenLinear>(std::move(w.k), std::move(w.k_bias));
  site(Site::V) = std::make_unique<FrozenLinear>(std::move(w.v), std::move(w.v_bias));
  site(Site::O) = std::make_unique<FrozenLinear>(std::move(w.o), std::move(w.o_bias));
  site(Site::Gate) = std::make_unique<FrozenLinear>(std::move(w.gate), std::move(w.gate_bias));
  site(Site::Up) = std::make_unique<FrozenLinear>(std::move(w.up), std::move(w.up_bias));
  site(Site::Down) = std::make_unique<FrozenLinear>(std::move(w.down), std::move(w.down_bias));
}

// What runs again is a half or a whole with its residual addition: gradients then meet in the order
// in which they meet without, so not a bit changes.
Var Block::apply(Tape& tape, const Var& x, const BlockInput& in) {
  switch (in.recompute) {
    case RecomputeKind::None:
      return feed_forward_half(tape, attention_half(tape, x, in), in);
    case RecomputeKind::GateUp: {
      auto half = [this, in](Tape& t, const Var& h) { return feed_forward_half(t, h, in); };
      return checkpoint(tape, attention_half(tape, x, in), half,
                        {adapted(Site::Gate, Site::Down), nullptr, false});
    }
    case RecomputeKind::Block:
    case RecomputeKind::Offload:
      break;
  }
  auto whole = [this, in](Tape& t, const Var& v) {
    return feed_forward_half(t, attention_half(t, v, in), in);
  };
  return checkpoint(
      tape, x, whole,
      {adapted(Site::Q, Site::Down), in.offloads, in.recompute == RecomputeKind::Offload});
}

Var Block::attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  if (fused_ && in.fused) {
    const FusedProjections& f = *fused_;
    Var qkv = fused_norm_linear(tape, x, attn_norm_, eps_, f.qkv, f.qkv.strip);
    Var o =
        fused_attention(tape, qkv, in.rope_table, in.positions, attention_, in.segments, f.o.strip);
    return fused_linear_onto(tape, x, o, f.o, in.margin);
  }
  Var n = rmsnorm(tape, x, attn_norm_, eps_);
  Var q = rope(tape, project(tape, Site::Q, n, in), in.rope_table, in.positions, head_dim_);
  Var k = rope(tape, project(tape, Site::K, n, in), in.rope_table, in.positions, head_dim_);
  Var v = project(tape, Site::V, n, in);
  return add(tape, x, project(tape, Site::O, attend(tape, q, k, v, in), in));
}

Var Block::feed_forward_half(Tape& tape, const Var& h, const BlockInput& in) {
  if (fused_ && in.fused) {
    const FusedProjections& f = *fused_;
    Var gate_up = fused_norm_linear(tape, h, ffn_norm_, eps_, f.gate_up, f.gate_up.strip);
    return tape.last([&] { return fused_swiglu_linear_onto(tape, h, gate_up, f.down, in.margin); });
  }
  Var m = rmsnorm(tape, h, ffn_norm_, eps_);
  Var gate = project(tape, Site::Gate, m, in);
  Var up = project(tape, Site::Up, m, in);
  Var inner = swiglu(tape, gate, up);
  return tape.last([&] { return add(tape, h, project(tape, Site::Down, inner, in)); });
}

bool Block::adapted(Site first, Site last) const {
  for (auto s = static_cast<std::size_t>(first); s <= static_cast<std::size_t>(last); ++s)
    if (dynamic_cast<const FrozenLinear*>(sites_[s].get()) == nullptr) return true;
  return false;
}

Var Block::attend(Tape& tape, const Var& q, const Var& k, const Var& v, const BlockInput& in) {
  if (!in.cache) return attention(tape, q, k, v, attention_, in.segments);
  // Generation: put the new keys and values into the cache, attend to all of it. No gradients here.
  check(!tape.recording(), "a KV cache has no backward");
  const KvCache::Layer& layer = in.cache->layer(index_);
  Backend& backend = tape.backend();
  backend.put_rows(layer.k, k.value(), in.cached->cache_rows);
  backend.put_rows(layer.v, v.value(), in.cached->cache_rows);
  Tensor o = tape.activation(q.dtype(), q.value().shape());
  Tensor lse = tape.activation(stat_dtype(q.dtype()), {attention_.n_heads, q.value().rows()});
  backend.attention_forward(o, lse, q.value(), layer.k, layer.v, attention_, in.segments,
                            in.cached->keys);
  return tape.constant(std::move(o));
}

}  // namespace lk
