#include "nn/block.h"

#include <cmath>

#include "autograd/trained.h"

#include "autograd/virtual_tokens.h"

namespace lk {

std::string site_path(const ModelConfig& config, std::size_t layer, Site site) {
  return module_path(family_of(config), role_of(site), static_cast<std::int64_t>(layer));
}

Var norm(Tape& tape, const Var& x, const NormWeights& w, double eps) {
  if (w.trained_gain && w.trained_bias)
    return layernorm(tape, x, *w.trained_gain, *w.trained_bias, eps);
  if (w.trained_gain) return rmsnorm(tape, x, *w.trained_gain, eps);
  if (w.trained_bias) return layernorm(tape, x, w.gain, *w.trained_bias, eps);
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
      q_norm_{std::move(w.q_norm), {}},
      k_norm_{std::move(w.k_norm), {}} {
  attention_.n_heads = static_cast<int>(config.n_heads);
  attention_.n_kv_heads = static_cast<int>(config.n_kv_heads);
  attention_.head_dim = head_dim_;
  const double scale = config.query_scale > 0 ? config.query_scale : static_cast<double>(head_dim_);
  attention_.scale = static_cast<float>(1.0 / std::sqrt(scale));
  if (local_) attention_.window = static_cast<int>(config.window);
  for (std::size_t s = 0; s < sites_.size(); ++s) {
    Projection& p = w.projections[s];
    if (p.weight.defined())
      sites_[s] = std::make_unique<FrozenLinear>(std::move(p.weight), std::move(p.bias));
  }
}

// What runs again is a half or a whole block with its residual addition. Gradients then meet in the
// same order as without recomputation, so not a bit changes.
Var Block::apply(Tape& tape, const Var& x, const BlockInput& in) {
  if (in.cache) return apply_cached(tape, x, in);
  const bool joined = joined_ && in.joined && !places_.any();
  auto attention = [this, in, joined](Tape& t, const Var& v) {
    return joined ? joined_attention_half(t, v, in) : attention_half(t, v, in);
  };
  auto feed_forward = [this, in, joined](Tape& t, const Var& h, Output y) {
    return joined ? joined_feed_forward_half(t, h, in, y) : feed_forward_half(t, h, in, y);
  };
  switch (in.recompute) {
    case RecomputeKind::None:
      return feed_forward(tape, attention(tape, x), Output::Read);
    case RecomputeKind::GateUp:
      return checkpoint(tape, attention(tape, x), feed_forward,
                        {trains(Site::Gate, Site::Down), nullptr, false});
    case RecomputeKind::KeepAttention:
    case RecomputeKind::Block:
      break;
  }
  auto whole = [attention, feed_forward](Tape& t, const Var& v, Output y) {
    return feed_forward(t, attention(t, v), y);
  };
  return checkpoint(tape, x, whole,
                    {trains(Site::Qkv, Site::Down), in.offloads, in.offload,
                     in.recompute == RecomputeKind::KeepAttention});
}

// h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
Var Block::attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  Var o = project(tape, Site::O, attend(tape, x, in), in);
  if (post_attn_norm_.gain.defined()) o = norm(tape, o, post_attn_norm_, eps_);
  if (places_.after_attention) o = places_.after_attention->apply(tape, x, o, in.mode);
  return add(tape, x, o);
}

// y = h + down(act(gate(m)) * up(m)),  m = norm(h)
Var Block::feed_forward_half(Tape& tape, const Var& h, const BlockInput& in, Output y) {
  if (!post_ffn_norm_.gain.defined() && !places_.after_mlp)
    return add(tape, h, project(tape, Site::Down, inner(tape, h, in), in, y), y);
  // What follows reads the projection in backward: only the residual sum may be left unwritten.
  Var down = project(tape, Site::Down, inner(tape, h, in), in);
  if (post_ffn_norm_.gain.defined()) down = norm(tape, down, post_ffn_norm_, eps_);
  if (places_.after_mlp) down = places_.after_mlp->apply(tape, h, down, in.mode);
  return add(tape, h, down, y);
}

Var Block::attend(Tape& tape, const Var& x, const BlockInput& in) {
  const Tensor& table = local_ ? in.local_rope_table : in.rope_table;
  if (site(Site::Qkv)) {
    const Var qkv = project_normed(tape, {Site::Qkv}, attn_norm_, x, in)[0];
    if (places_.attention) {
      const std::int64_t q_end = attention_.n_heads * head_dim_,
                         k_end = q_end + attention_.n_kv_heads * head_dim_;
      return attend(tape, slice_cols(tape, qkv, 0, q_end), slice_cols(tape, qkv, q_end, k_end),
                    slice_cols(tape, qkv, k_end, qkv.value().cols()), table, in);
    }
    return qkv_attention(tape, qkv, table, in.positions, attention_, in.segments, 0);
  }
  const std::vector<Var> qkv = project_normed(tape, {Site::Q, Site::K, Site::V}, attn_norm_, x, in);
  Var q = qkv[0], k = qkv[1];
  if (q_norm_.gain.defined()) q = norm(tape, q, q_norm_, eps_);
  if (k_norm_.gain.defined()) k = norm(tape, k, k_norm_, eps_);
  return attend(tape, q, k, qkv[2], table, in);
}

Var Block::attend(Tape& tape, Var q, Var k, const Var& v, const Tensor& table,
                  const BlockInput& in) {
  if (table.defined()) {
    q = rope(tape, q, table, in.positions, head_dim_);
    k = rope(tape, k, table, in.positions, head_dim_);
  }
  if (places_.attention)
    return places_.attention->attend(tape, q, k, v, attention_, in.segments, in.positions);
  return attention(tape, q, k, v, attention_, in.segments);
}

Var Block::inner(Tape& tape, const Var& h, const BlockInput& in) {
  return activate(tape, project_normed(tape, mlp_sites(), ffn_norm_, h, in));
}

std::vector<Site> Block::mlp_sites() const {
  if (mlp_ == MlpKind::Gelu) return {Site::Up};
  return {Site::Gate, Site::Up};
}

Var Block::activate(Tape& tape, const std::vector<Var>& projected) {
  if (mlp_ == MlpKind::Gelu) return gelu(tape, projected[0]);
  const auto glu = gate_act() == Activation::Gelu ? geglu : swiglu;
  return glu(tape, projected[0], projected[1]);
}

std::vector<Var> Block::project_normed(Tape& tape, const std::vector<Site>& sites,
                                       const NormWeights& w, const Var& x, const BlockInput& in) {
  const Var n = norm(tape, x, w, eps_);
  std::vector<Var> y;
  for (Site s : sites) y.push_back(project(tape, s, n, in));
  return y;
}

bool Block::trains(Site first, Site last) const {
  if (places_.any() || attn_norm_.trained_bias || ffn_norm_.trained_bias) return true;
  for (auto s = static_cast<std::size_t>(first); s <= static_cast<std::size_t>(last); ++s)
    if (sites_[s] && dynamic_cast<const FrozenLinear*>(sites_[s].get()) == nullptr) return true;
  return false;
}

}  // namespace lk
