#include "nn/block.h"

#include <cmath>

#include "nn/cached_ops.h"

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

namespace {
InputDropout dropout_of(const JoinedLinear& f, const ForwardMode& mode) {
  return {mode.training ? f.dropout : 0.0f, dropout_key(mode, 0)};
}
}  // namespace

Var Block::attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  if (joined_ && in.joined) {
    const JoinedProjections& f = *joined_;
    const std::int64_t o_thin = f.thin_of(f.o);
    Var o;
    if (f.qkv) {
      Var qkv = joined_norm_linear(tape, x, attn_norm_.gain, eps_, *f.qkv, f.qkv->thin,
                                   dropout_of(*f.qkv, in.mode));
      o = qkv_attention(tape, qkv, in.rope_table, in.positions, attention_, in.segments, o_thin);
    } else {
      o = attend(tape, x, in, o_thin);
    }
    if (!f.o) return project_onto(tape, Site::O, x, o, in);
    return joined_linear_onto(tape, x, o, *f.o, in.margin, dropout_of(*f.o, in.mode));
  }
  Var o = attend(tape, x, in, 0);
  if (!post_attn_norm_.gain.defined()) return project_onto(tape, Site::O, x, o, in);
  return add(tape, x, norm(tape, project(tape, Site::O, o, in), post_attn_norm_, eps_));
}

Var Block::feed_forward_half(Tape& tape, const Var& h, const BlockInput& in) {
  if (joined_ && in.joined) {
    const JoinedProjections& f = *joined_;
    if (f.gate_up) {
      Var gate_up = joined_norm_linear(tape, h, ffn_norm_.gain, eps_, *f.gate_up, f.gate_up->thin,
                                       dropout_of(*f.gate_up, in.mode));
      return tape.last([&] {
        return joined_swiglu_linear_onto(tape, h, gate_up, *f.down, in.margin,
                                         dropout_of(*f.down, in.mode));
      });
    }
    Var m = inner(tape, h, in, f.thin_of(f.down));
    return tape.last([&] {
      if (!f.down) return project_onto(tape, Site::Down, h, m, in);
      return joined_linear_onto(tape, h, m, *f.down, in.margin, dropout_of(*f.down, in.mode));
    });
  }
  Var m = inner(tape, h, in, 0);
  if (!post_ffn_norm_.gain.defined())
    return tape.last([&] { return project_onto(tape, Site::Down, h, m, in); });
  // A norm reads what it norms in backward: on a rerun only the sum may be left out.
  Var y = norm(tape, project(tape, Site::Down, m, in), post_ffn_norm_, eps_);
  return tape.last([&] { return add(tape, h, y); });
}

Var Block::inner(Tape& tape, const Var& h, const BlockInput& in, std::int64_t margin) {
  if (mlp_ == MlpKind::Gelu) return gelu(tape, project_all(tape, {Site::Up}, ffn_norm_, h, in)[0]);
  const std::vector<Var> y = project_all(tape, {Site::Gate, Site::Up}, ffn_norm_, h, in);
  return mlp_ == MlpKind::GeGlu ? geglu(tape, y[0], y[1]) : swiglu(tape, y[0], y[1], margin);
}

std::vector<Var> Block::project_all(Tape& tape, std::initializer_list<Site> sites,
                                    const NormWeights& w, const Var& x, const BlockInput& in) {
  if (in.cache) return project_cached(tape, sites, &w, x, {}, in);
  Var n = norm(tape, x, w, eps_);
  std::vector<Var> y;
  for (Site s : sites) y.push_back(project(tape, s, n, in));
  return y;
}

Var Block::project_onto(Tape& tape, Site s, const Var& residual, const Var& x,
                        const BlockInput& in) {
  if (in.cache) return project_cached(tape, {s}, nullptr, x, residual.value(), in)[0];
  return add(tape, residual, project(tape, s, x, in));
}

std::vector<Var> Block::project_cached(Tape& tape, std::initializer_list<Site> sites,
                                       const NormWeights* w, const Var& x, const Tensor& addend,
                                       const BlockInput& in) {
  check(!tape.recording(), "a KV cache has no backward");
  const bool joined = w && !w->bias.defined();  // with the products
  Tensor n = !w || joined ? x.value() : norm(tape, x, *w, eps_).value();
  InputNorm input_norm{};
  if (joined) input_norm = {&w->gain, eps_, tape.activation(x.dtype(), n.shape())};
  std::vector<LinearPart> parts;
  for (Site s : sites) {
    const FrozenLinear& frozen = site(s)->frozen();
    parts.push_back(
        {tape.activation(x.dtype(), {n.rows(), frozen.out_features()}), &frozen.weight(), addend});
  }
  Backend& backend = tape.backend();
  cached::linear_parts(backend, n, joined ? &input_norm : nullptr, parts);
  if (joined) n = input_norm.normed;
  std::vector<Var> y;
  auto part = parts.begin();
  for (Site s : sites) {
    if (const Weight* bias = site(s)->frozen().bias()) backend.add_bias(part->y, *bias);
    site(s)->adapt(tape, part->y, n, in.mode);
    y.push_back(tape.constant(std::move(part++->y)));
  }
  return y;
}

bool Block::adapted(Site first, Site last) const {
  for (auto s = static_cast<std::size_t>(first); s <= static_cast<std::size_t>(last); ++s)
    if (sites_[s] && dynamic_cast<const FrozenLinear*>(sites_[s].get()) == nullptr) return true;
  return false;
}

Var Block::attend(Tape& tape, const Var& x, const BlockInput& in, std::int64_t margin) {
  const Tensor& table = local_ ? in.local_rope_table : in.rope_table;
  if (site(Site::Qkv)) {
    const Var qkv = project_all(tape, {Site::Qkv}, attn_norm_, x, in)[0];
    if (!in.cache) return qkv_attention(tape, qkv, table, in.positions, attention_, in.segments, 0);
    const std::int64_t H = attention_.n_heads, G = attention_.n_kv_heads, D = head_dim_;
    const Tensor& all = qkv.value();
    return attend_cached(tape, all.slice_cols(0, H * D), all.slice_cols(H * D, (H + G) * D),
                         all.slice_cols((H + G) * D, (H + 2 * G) * D), table, in);
  }
  const std::vector<Var> qkv = project_all(tape, {Site::Q, Site::K, Site::V}, attn_norm_, x, in);
  Var q = qkv[0], k = qkv[1];
  if (q_norm_.defined()) q = rmsnorm(tape, q, q_norm_, eps_);
  if (k_norm_.defined()) k = rmsnorm(tape, k, k_norm_, eps_);
  if (in.cache) return attend_cached(tape, q.value(), k.value(), qkv[2].value(), table, in);
  if (table.defined()) {
    q = rope(tape, q, table, in.positions, head_dim_);
    k = rope(tape, k, table, in.positions, head_dim_);
  }
  return attention(tape, q, k, qkv[2], attention_, in.segments, margin);
}

Var Block::attend_cached(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& table, const BlockInput& in) {
  check(!tape.recording(), "a KV cache has no backward");
  const KvCache::Layer& layer = in.cache->layer(index_);
  Backend& backend = tape.backend();
  cached::rope_into_cache(backend, q, k, v, {layer.k, layer.v, in.cached->cache_rows}, table,
                          in.positions, head_dim_);
  Tensor o = tape.activation(q.dtype(), {q.rows(), q.cols()});
  Tensor lse = tape.activation(stat_dtype(q.dtype()), {attention_.n_heads, q.rows()});
  backend.attention_forward(o, lse, q, layer.k, layer.v, attention_, in.segments, in.cached->keys);
  return tape.constant(std::move(o));
}

}  // namespace lk
