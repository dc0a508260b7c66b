// A block for training on a GPU: computes what block.cpp defines, with projections that share a
// matrix. See Note [Joined projections] in autograd/joined.h.
//
// Only blocks like LLaMA's have joined projections (lora/joined.cpp): RMSNorm, rotary positions,
// SwiGLU, and no norm in between. Projections that no gradient reaches are not joined and run as
// block.cpp defines.
#include "nn/block.h"

namespace lk {
namespace {

// Dropout of the input of A; the parts hold the sites.
InputDropout dropout_of(const JoinedLinear& f, const ForwardMode& mode) {
  return {mode.training ? f.dropout : 0.0f, dropout_key(mode, 0)};
}

}  // namespace

// h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
Var Block::joined_attention_half(Tape& tape, const Var& x, const BlockInput& in) {
  const auto& [qkv, o, gate_up, down] = *joined_;
  Var attended;
  if (qkv) {
    const Var packed = joined_norm_linear(tape, x, attn_norm_.gain, eps_, *qkv, qkv->thin,
                                          dropout_of(*qkv, in.mode));
    attended = qkv_attention(tape, packed, in.rope_table, in.positions, attention_, in.segments,
                             JoinedProjections::thin_of(o));
  } else {
    attended = attend(tape, x, in);
  }
  if (!o) return add(tape, x, project(tape, Site::O, attended, in));
  return joined_linear_onto(tape, x, attended, *o, in.margin, dropout_of(*o, in.mode));
}

// y = h + down(silu(gate(m)) * up(m)),  m = norm(h)
Var Block::joined_feed_forward_half(Tape& tape, const Var& h, const BlockInput& in, Output y) {
  const auto& [qkv, o, gate_up, down] = *joined_;
  if (gate_up) {
    const Var packed = joined_norm_linear(tape, h, ffn_norm_.gain, eps_, *gate_up, gate_up->thin,
                                          dropout_of(*gate_up, in.mode));
    return joined_swiglu_linear_onto(tape, h, packed, *down, in.margin, dropout_of(*down, in.mode),
                                     y);
  }
  if (down)
    return joined_linear_onto(tape, h, inner(tape, h, in), *down, in.margin,
                              dropout_of(*down, in.mode), y);
  return feed_forward_half(tape, h, in, y);
}

}  // namespace lk
