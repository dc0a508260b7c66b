// A block in a step of generation: computes what block.cpp defines, for new tokens over a KV cache,
// in few launches. There is no backward.
#include <algorithm>

#include "nn/block.h"
#include "nn/cached_ops.h"

namespace lk {

Var Block::apply_cached(Tape& tape, const Var& x, const BlockInput& in) {
  check(!tape.recording(), "a KV cache has no backward");
  const Var o = attend_cached(tape, x, in);
  const Var h =
      project_cached_onto(tape, Site::O, post_attn_norm_, places_.after_attention, x, o, in, {});
  const std::vector<Var> m = project_cached(tape, mlp_sites(), &ffn_norm_, h, {}, in);
  const bool gated = m.size() == 2;
  return project_cached_onto(tape, Site::Down, post_ffn_norm_, places_.after_mlp, h,
                             gated ? m[1] : activate(tape, m), in, gated ? m[0] : Var());
}

// Adds k and v to the cache; then the queries read all keys and values of their own sequence.
Var Block::attend_cached(Tape& tape, const Var& x, const BlockInput& in) {
  const std::int64_t H = attention_.n_heads, G = attention_.n_kv_heads, D = head_dim_;
  Tensor q, k, v;
  if (site(Site::Qkv)) {
    const Tensor qkv = project_cached(tape, {Site::Qkv}, &attn_norm_, x, {}, in)[0].value();
    q = qkv.slice_cols(0, H * D);
    k = qkv.slice_cols(H * D, (H + G) * D);
    v = qkv.slice_cols((H + G) * D, (H + 2 * G) * D);
  } else {
    const std::vector<Var> qkv =
        project_cached(tape, {Site::Q, Site::K, Site::V}, &attn_norm_, x, {}, in);
    q = qkv[0].value(), k = qkv[1].value(), v = qkv[2].value();
    if (q_norm_.trained_gain) q = norm(tape, qkv[0], q_norm_, eps_).value();
    if (k_norm_.trained_gain) k = norm(tape, qkv[1], k_norm_, eps_).value();
  }
  const auto frozen_gain = [](const NormWeights& w) {
    return w.gain.defined() && !w.trained_gain ? &w.gain : nullptr;
  };
  const KvCache::Layer& layer = in.cache->layer(index_);
  Tensor o = tape.activation(q.dtype(), {q.rows(), q.cols()});
  Tensor lse = tape.activation(stat_dtype(q.dtype()), {H, q.rows()});
  const Tensor made_q =
      places_.attention ? tape.activation(q.dtype(), {q.rows(), q.cols()}) : Tensor();
  cached::attend(tape.backend(),
                 {.o = o,
                  .lse = lse,
                  .q = q,
                  .k = k,
                  .v = v,
                  .q_gain = frozen_gain(q_norm_),
                  .k_gain = frozen_gain(k_norm_),
                  .eps = eps_,
                  .rotation = {local_ ? in.local_rope_table : in.rope_table, in.positions},
                  .cache = {layer.k, layer.v, in.cached->cache_rows},
                  .made_q = made_q,
                  .shape = attention_,
                  .q_seg = in.segments,
                  .k_rows = in.cached->keys});
  if (places_.attention)
    places_.attention->attend_cached(tape, o, lse, made_q, attention_, in.positions);
  return tape.constant(std::move(o));
}

std::vector<Var> Block::project_cached(Tape& tape, const std::vector<Site>& sites,
                                       const NormWeights* w, const Var& x, const Tensor& addend,
                                       const BlockInput& in, const Var& gate) {
  std::vector<Var> y;
  if (std::any_of(sites.begin(), sites.end(), [&](Site s) { return !site(s)->adapts(); })) {
    const Var n = w                        ? norm(tape, x, *w, eps_)
                  : gate.value().defined() ? activate(tape, {gate, x})
                                           : x;
    for (Site s : sites) {
      y.push_back(project(tape, s, n, in));
      if (addend.defined()) y.back() = add(tape, tape.constant(addend), y.back());
    }
    return y;
  }
  const bool rms = w && !w->bias.defined();  // the products compute it where they read x
  Tensor n = !w || rms ? x.value() : norm(tape, x, *w, eps_).value();
  MadeInput input{};
  if (rms || gate.value().defined()) input.made = tape.activation(x.dtype(), n.shape());
  if (rms) input.gain = &w->gain, input.eps = eps_;
  if (gate.value().defined()) input.gate = gate.value(), input.act = gate_act();
  std::vector<LinearPart> parts;
  for (Site s : sites) {
    const FrozenLinear& frozen = site(s)->frozen();
    parts.push_back({tape.activation(x.dtype(), {n.rows(), frozen.out_features()}),
                     &frozen.weight(), site(s)->scales() ? Tensor() : addend});
  }
  Backend& backend = tape.backend();
  cached::linear_parts(backend, n, input.made ? &input : nullptr, parts);
  if (input.made) n = input.made;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    LinearMap& map = *site(sites[i]);
    if (const Weight* bias = map.frozen().bias()) backend.add_bias(parts[i].y, *bias);
    map.adapt(tape, parts[i].y, n, in.mode);
    if (map.scales() && addend.defined()) backend.add(parts[i].y, parts[i].y, addend);
    y.push_back(tape.constant(std::move(parts[i].y)));
  }
  return y;
}

Var Block::project_cached_onto(Tape& tape, Site s, const NormWeights& w, SublayerPlace* place,
                               const Var& residual, const Var& x, const BlockInput& in,
                               const Var& gate) {
  if (!w.gain.defined() && !place)
    return project_cached(tape, {s}, nullptr, x, residual.value(), in, gate)[0];
  Var y = project(tape, s, gate.value().defined() ? activate(tape, {gate, x}) : x, in);
  if (w.gain.defined()) y = norm(tape, y, w, eps_);
  if (place) y = place->apply(tape, residual, y, in.mode);
  return add(tape, residual, y);
}

}  // namespace lk
