#include "nn/block.h"

#include <cmath>

namespace lk {

std::string site_path(const ModelConfig& config, std::size_t layer, Site site) {
  static constexpr Role kRoles[] = {Role::Qkv, Role::Q,    Role::K,  Role::V,
                                    Role::O,   Role::Gate, Role::Up, Role::Down};
  return module_path(family_of(config), kRoles[static_cast<int>(site)],
                     static_cast<std::int64_t>(layer));
}

Var norm(Tape& tape, const Var& x, const NormWeights& w, double eps) {
  return w.bias.defined() ? layernorm(tape, x, w.gain, w.bias, eps) : rmsnorm(tape, x, w.gain, eps);
}

Block::Block(const ModelConfig& config, LayerWeights w, std::size_t index)
    : index_(index),
      local_(config.is_local(index)),
      mlp_(config.mlp),
      head_dim_(static_cast<int>(config.head_dim)),
      eps_(config.rms_eps),
      attn_norm_{std::move(w.attn_norm), std::move(w.attn_norm_bias)},
      post_attn_norm_{std::move(w.post_attn_norm), {}},
      ffn_norm_{std::move(w.ffn_norm), std::move(w.ffn_norm_bias)},
      post_ffn_norm_{std::move(w.post_ffn_norm), {}},
      q_norm_(std::move(w.q_norm)),
      k_norm_(std::move(w.k_norm)) {
  attention_.n_heads = static_cast<int>(config.n_heads);
  attention_.n_kv_heads = static_cast<int>(config.n_kv_heads);
  attention_.head_dim = head_dim_;
  const double scale = config.query_scale > 0 ? config.query_scale : static_cast<double>(head_dim_);
  attention_.scale = static_cast<float>(1.0 / std::sqrt(scale));
  if (local_) attention_.window = static_cast<int>(config.window);
  auto place = [this](Site s, Weight& weight, Weight& bias) {
    if (weight.defined())
      site(s) = std::make_unique<FrozenLinear>(std::move(weight), std::move(bias));
  };
  place(Site::Qkv, w.qkv, w.qkv_bias);
  place(Site::Q, w.q, w.q_bias);
  place(Site::K, w.k, w.k_bias);
  place(Site::V, w.v, w.v_bias);
  place(Site::O, w.o, w.o_bias);
  place(Site::Gate, w.gate, w.gate_bias);
  place(Site::Up, w.up, w.up_bias);
  place(Site::Down, w.down, w.down_bias);
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
      {adapted(Site::Qkv, Site::Down), in.offloads, in.recompute == RecomputeKind::Offload});
}

Var Block::attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  if (fused_ && in.fused) {
    const FusedProjections& f = *fused_;
    Var qkv = fused_norm_linear(tape, x, attn_norm_.gain, eps_, f.qkv, f.qkv.strip);
    Var o =
        fused_attention(tape, qkv, in.rope_table, in.positions, attention_, in.segments, f.o.strip);
    return fused_linear_onto(tape, x, o, f.o, in.margin);
  }
  Var o = project(tape, Site::O, attend(tape, norm(tape, x, attn_norm_, eps_), in), in);
  if (post_attn_norm_.gain.defined()) o = norm(tape, o, post_attn_norm_, eps_);
  return add(tape, x, o);
}

Var Block::feed_forward_half(Tape& tape, const Var& h, const BlockInput& in) {
  if (fused_ && in.fused) {
    const FusedProjections& f = *fused_;
    Var gate_up = fused_norm_linear(tape, h, ffn_norm_.gain, eps_, f.gate_up, f.gate_up.strip);
    return tape.last([&] { return fused_swiglu_linear_onto(tape, h, gate_up, f.down, in.margin); });
  }
  Var m = inner(tape, norm(tape, h, ffn_norm_, eps_), in);
  if (!post_ffn_norm_.gain.defined())
    return tape.last([&] { return add(tape, h, project(tape, Site::Down, m, in)); });
  // A norm reads what it norms in backward: on a rerun only the sum may be left out.
  Var y = norm(tape, project(tape, Site::Down, m, in), post_ffn_norm_, eps_);
  return tape.last([&] { return add(tape, h, y); });
}

Var Block::inner(Tape& tape, const Var& m, const BlockInput& in) {
  if (mlp_ == MlpKind::Gelu) return gelu(tape, project(tape, Site::Up, m, in));
  Var gate = project(tape, Site::Gate, m, in);
  Var up = project(tape, Site::Up, m, in);
  return mlp_ == MlpKind::GeGlu ? geglu(tape, gate, up) : swiglu(tape, gate, up);
}

bool Block::adapted(Site first, Site last) const {
  for (auto s = static_cast<std::size_t>(first); s <= static_cast<std::size_t>(last); ++s)
    if (sites_[s] && dynamic_cast<const FrozenLinear*>(sites_[s].get()) == nullptr) return true;
  return false;
}

Var Block::attend(Tape& tape, const Var& n, const BlockInput& in) {
  const Tensor& table = local_ ? in.local_rope_table : in.rope_table;
  if (site(Site::Qkv)) {
    Var qkv = project(tape, Site::Qkv, n, in);
    if (!in.cache)
      return fused_attention(tape, qkv, table, in.positions, attention_, in.segments, 0);
    check(!table.defined(), "a cache of joined projections with rotary positions");
    const std::int64_t H = attention_.n_heads, G = attention_.n_kv_heads, D = head_dim_;
    const Tensor& x = qkv.value();
    return attend_cached(tape, x.slice_cols(0, H * D), x.slice_cols(H * D, (H + G) * D),
                         x.slice_cols((H + G) * D, (H + 2 * G) * D), in);
  }
  // The products first: on a GPU they then run into each other.
  Var q = project(tape, Site::Q, n, in), k = project(tape, Site::K, n, in);
  Var v = project(tape, Site::V, n, in);
  auto turned = [&](Var& x, const Weight& gain) {
    if (gain.defined()) x = rmsnorm(tape, x, gain, eps_);
    if (table.defined()) x = rope(tape, x, table, in.positions, head_dim_);
  };
  turned(q, q_norm_), turned(k, k_norm_);
  if (!in.cache) return attention(tape, q, k, v, attention_, in.segments);
  return attend_cached(tape, q.value(), k.value(), v.value(), in);
}

Var Block::attend_cached(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v,
                         const BlockInput& in) {
  // Put the new keys and values into the cache, attend to all of it. No gradients here.
  check(!tape.recording(), "a KV cache has no backward");
  const KvCache::Layer& layer = in.cache->layer(index_);
  Backend& backend = tape.backend();
  backend.put_rows(layer.k, k, in.cached->cache_rows);
  backend.put_rows(layer.v, v, in.cached->cache_rows);
  Tensor o = tape.activation(q.dtype(), {q.rows(), q.cols()});
  Tensor lse = tape.activation(stat_dtype(q.dtype()), {attention_.n_heads, q.rows()});
  backend.attention_forward(o, lse, q, layer.k, layer.v, attention_, in.segments, in.cached->keys);
  return tape.constant(std::move(o));
}

}  // namespace lk
