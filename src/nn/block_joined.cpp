// A block for training on a GPU: computes what block.cpp defines, with projections that share a
// matrix. See Note [Joined projections] in autograd/joined.h.
//
// Every family's block can be joined: what lies between the projections is that of block.cpp. An
// RMSNorm before them and a gate behind them are part of the joined ops, which keep less for it; a
// LayerNorm, an MLP without a gate and norms of what is added are ops of their own. Projections that
// no gradient reaches are not joined and run as block.cpp defines.
#include "nn/block.h"

namespace lk {
namespace {

// Dropout of the input of A; the parts hold the sites.
InputDropout dropout_of(const JoinedLinear& f, const ForwardMode& mode) {
  return {mode.training ? f.dropout : 0.0f, dropout_key(mode, 0)};
}

// The joined projections of norm(x).
Var normed_product(Tape& tape, const Var& x, const NormWeights& w, double eps,
                   const JoinedLinear& f, const ForwardMode& mode) {
  if (w.bias.defined() || w.trained_gain || w.trained_bias)
    return joined_linear(tape, norm(tape, x, w, eps), f, f.thin, dropout_of(f, mode));
  return joined_norm_linear(tape, x, w.gain, eps, f, f.thin, dropout_of(f, mode));
}

}  // namespace

// h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
Var Block::joined_attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  const auto& [qkv, o, gate_up, down] = *joined_;
  const auto given = [](const auto& f) { return f ? &*f : nullptr; };
  update_norms(tape.backend(), {given(qkv), given(o), given(gate_up), given(down)});
  const std::int64_t margin = JoinedProjections::thin_of(o);
  Var attended;
  if (qkv) {
    const Tensor& table = local_ ? in.local_rope_table : in.rope_table;
    const Var packed = normed_product(tape, x, attn_norm_, eps_, *qkv, in.mode);
    attended =
        q_norm_.gain.defined()
            ? head_normed_attention(tape, packed, {q_norm_.gain, k_norm_.gain, eps_}, table,
                                    in.positions, attention_, in.segments, margin)
            : qkv_attention(tape, packed, table, in.positions, attention_, in.segments, margin);
  } else {
    attended = attend(tape, x, in);
  }
  const bool normed = post_attn_norm_.gain.defined();
  if (o && !normed)
    return joined_linear_onto(tape, x, attended, *o, in.margin, dropout_of(*o, in.mode));
  Var y = o ? joined_linear(tape, attended, *o, margin, dropout_of(*o, in.mode))
            : project(tape, Site::O, attended, in);
  if (normed) y = norm(tape, y, post_attn_norm_, eps_);
  return add(tape, x, y);
}

// y = h + down(act(gate(m)) * up(m)),  m = norm(h)
Var Block::joined_feed_forward_half(Tape& tape, const Var& h, const BlockInput& in, Output y) {
  const auto& [qkv, o, gate_up, down] = *joined_;
  if (!down) return feed_forward_half(tape, h, in, y);
  const InputDropout drop = dropout_of(*down, in.mode);
  const bool normed = post_ffn_norm_.gain.defined();
  Var added;
  if (gate_up && mlp_ != MlpKind::Gelu) {
    const Var packed = normed_product(tape, h, ffn_norm_, eps_, *gate_up, in.mode);
    const Activation act = gate_act();
    if (!normed) return joined_gated_linear_onto(tape, act, h, packed, *down, in.margin, drop, y);
    added = joined_gated_linear(tape, act, packed, *down, down->thin, drop);
  } else {
    const Var x = gate_up ? gelu(tape, normed_product(tape, h, ffn_norm_, eps_, *gate_up, in.mode))
                          : inner(tape, h, in);
    if (!normed) return joined_linear_onto(tape, h, x, *down, in.margin, drop, y);
    added = joined_linear(tape, x, *down, down->thin, drop);
  }
  return add(tape, h, norm(tape, added, post_ffn_norm_, eps_), y);
}

}  // namespace lk
