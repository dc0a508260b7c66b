// One decoder layer. What differs between families is in ModelConfig: see Note [Families are data]
// in nn/family.h.
//
// A Block is written three times: block.cpp is the definition, block_joined.cpp computes it in
// fewer and larger steps for training on a GPU, and block_cached.cpp computes it for new tokens
// over a KV cache. apply() chooses.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "autograd/checkpoint.h"
#include "autograd/joined.h"
#include "nn/batch.h"
#include "nn/cached_batch.h"
#include "nn/config.h"
#include "nn/linear_map.h"
#include "nn/model_weights.h"
#include "nn/places.h"
#include "nn/recompute.h"

namespace lk {

// The module's path as Hugging Face names it: "model.layers.0.self_attn.q_proj".
std::string site_path(const ModelConfig& config, std::size_t layer, Site site);

// What a block reads besides the residual stream. Its members are handles, not references: a block
// that runs again in backward keeps a copy.
struct BlockInput {
  Tensor rope_table = {};               // (P, D); undefined with learned positions
  Tensor local_rope_table = {};         // (P, D) for local layers
  Tensor positions;                     // (T) I32
  Segments segments;                    // of the queries
  VirtualRows virtual_rows = {};        // of the model's input
  const CachedBatch* cached = nullptr;  // null without a cache
  const KvCache* cache = nullptr;
  ForwardMode mode;
  bool joined = false;      // use the block's joined projections, if it has any
  std::int64_t margin = 0;  // of the residual stream, if joined
  RecomputeKind recompute = RecomputeKind::None;  // of this block
  bool offload = false;                           // send what it keeps to the offloads
  std::shared_ptr<Offloads> offloads = {};        // of this forward, or null
};

// The projections of a block that are joined for training on a GPU: see Note [Joined projections]
// in autograd/joined.h. They reach from the first projection that trains, or whose input wants a
// gradient, to the block's last; a block that trains nothing has none. Made by lora/joined.cpp.
struct JoinedProjections {
  std::optional<JoinedLinear> qkv, o, gate_up, down;
  static std::int64_t thin_of(const std::optional<JoinedLinear>& f) { return f ? f->thin : 0; }
};

// The weights of a LayerNorm if there is a bias, else of an RMSNorm. What trains stands in the place of
// the frozen one; a gain only together with the bias, if there is one.
struct NormWeights {
  Weight gain, bias;
  Parameter *trained_gain = nullptr, *trained_bias = nullptr;
};
Var norm(Tape& tape, const Var& x, const NormWeights& w, double eps);

class Block {
 public:
  Block(const ModelConfig& config, LayerWeights weights, std::size_t index);

  // x (T,C) -> (T,C):
  //   h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
  //   y = h + down(act(gate(m)) * up(m)),                  m = norm(h)
  // Depending on the config, q and k are normed for each head, what is added to x and h is normed
  // too, and the MLP has no gate. in.recompute says what is kept.
  Var apply(Tape& tape, const Var& x, const BlockInput& in);

  // The projection at `s`; null where the model has none.
  std::unique_ptr<LinearMap>& site(Site s) { return sites_[static_cast<std::size_t>(s)]; }
  void set_joined(std::unique_ptr<JoinedProjections> joined) { joined_ = std::move(joined); }
  const JoinedProjections* joined() const { return joined_.get(); }
  BlockPlaces& places() { return places_; }
  // Calls f for all norms.
  template <class F>
  void visit_norms(const F& f) {
    f(Role::AttnNorm, attn_norm_), f(Role::FfnNorm, ffn_norm_);
    if (post_attn_norm_.gain.defined()) f(Role::PostAttnNorm, post_attn_norm_);
    if (post_ffn_norm_.gain.defined()) f(Role::PostFfnNorm, post_ffn_norm_);
    if (q_norm_.gain.defined()) f(Role::QNorm, q_norm_);
    if (k_norm_.gain.defined()) f(Role::KNorm, k_norm_);
  }

 private:
  // block.cpp: the two halves, x -> h and h -> y.
  Var attention_half(Tape& tape, const Var& x, const BlockInput& in);
  Var feed_forward_half(Tape& tape, const Var& h, const BlockInput& in, Output y);
  // x (T,C) -> (T,H*D): norms x and attends with its queries, keys and values.
  Var attend(Tape& tape, const Var& x, const BlockInput& in);
  // Rotates q and k by `table`, if the model has one, and attends.
  Var attend(Tape& tape, Var q, Var k, const Var& v, const Tensor& table, const BlockInput& in);
  // h (T,C) -> (T,F): the input of the down projection.
  Var inner(Tape& tape, const Var& h, const BlockInput& in);
  // The MLP's activation of its first projections, given in the order of mlp_sites().
  Var activate(Tape& tape, const std::vector<Var>& projected);
  // Of the MLP's gate, if it has one.
  Activation gate_act() const {
    return mlp_ == MlpKind::GeGlu ? Activation::Gelu : Activation::Silu;
  }
  std::vector<Site> mlp_sites() const;
  Var project(Tape& tape, Site s, const Var& x, const BlockInput& in, Output y = Output::Read) {
    return site(s)->apply(tape, x, in.mode, y);
  }
  // The projections `sites` of norm(x).
  std::vector<Var> project_normed(Tape& tape, const std::vector<Site>& sites, const NormWeights& w,
                                  const Var& x, const BlockInput& in);
  // Whether a projection from `first` to `last`, or a place, trains.
  bool trains(Site first, Site last) const;

  // block_joined.cpp
  Var joined_attention_half(Tape& tape, const Var& x, const BlockInput& in);
  Var joined_feed_forward_half(Tape& tape, const Var& h, const BlockInput& in, Output y);

  // block_cached.cpp
  Var apply_cached(Tape& tape, const Var& x, const BlockInput& in);
  Var attend_cached(Tape& tape, const Var& x, const BlockInput& in);
  // The projections `sites` of x, of its norm if `w` is not null, or of act(gate) * x if `gate` is defined, each
  // added to `addend` if that is defined. And residual + such a projection, of x or of act(gate) * x, which is
  // normed first if `w` is defined and then goes through `place` if that is not null.
  std::vector<Var> project_cached(Tape& tape, const std::vector<Site>& sites, const NormWeights* w,
                                  const Var& x, const Tensor& addend, const BlockInput& in,
                                  const Var& gate = {});
  Var project_cached_onto(Tape& tape, Site s, const NormWeights& w, SublayerPlace* place,
                          const Var& residual, const Var& x, const BlockInput& in, const Var& gate);

  std::size_t index_;
  bool local_;
  MlpKind mlp_;
  AttentionShape attention_;
  int head_dim_;
  double eps_;
  NormWeights attn_norm_, post_attn_norm_, ffn_norm_, post_ffn_norm_, q_norm_, k_norm_;
  std::array<std::unique_ptr<LinearMap>, kSiteCount> sites_;
  std::unique_ptr<JoinedProjections> joined_;
  BlockPlaces places_;
};

}  // namespace lk
