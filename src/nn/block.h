// One decoder layer. What differs between families is in ModelConfig: see Note [Families are data]
// in nn/family.h.
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
#include "nn/recompute.h"

namespace lk {

// The projections, in the order in which they run. A model has Qkv or the three of it, and no Gate
// if its MLP is not gated.
enum class Site : std::uint8_t { Qkv, Q, K, V, O, Gate, Up, Down };
inline constexpr int kSiteCount = 8;
// "model.layers.0.self_attn.q_proj", ... : the module's path as Hugging Face names it.
std::string site_path(const ModelConfig& config, std::size_t layer, Site site);

// What a block reads besides the residual stream. Handles, not references: a block that runs again
// in backward keeps a copy.
struct BlockInput {
  Tensor rope_table = {};               // (P, D); undefined with learned positions
  Tensor local_rope_table = {};         // the same for local layers
  Tensor positions;                     // (T) I32
  Segments segments;                    // of the queries
  const CachedBatch* cached = nullptr;  // with a cache only
  const KvCache* cache = nullptr;
  ForwardMode mode;
  bool joined = false;      // use the block's joined projections, if it has any
  std::int64_t margin = 0;  // of the residual stream then
  RecomputeKind recompute = RecomputeKind::None;  // of this block
  std::shared_ptr<Offloads> offloads = {};        // of this forward, if there are any
};

// The projections of a block that are joined for training on a GPU, see Note [Joined projections]:
// those of which a part trains, and down wherever gate and up are joined, since SwiGLU is a part of
// its product then. Made by lora/joined.cpp.
struct JoinedProjections {
  std::optional<JoinedLinear> qkv, o, gate_up, down;
  static std::int64_t thin_of(const std::optional<JoinedLinear>& f) { return f ? f->thin : 0; }
};

// LayerNorm if there is a bias, else RMSNorm.
struct NormWeights {
  Weight gain, bias;
};
Var norm(Tape& tape, const Var& x, const NormWeights& w, double eps);

class Block {
 public:
  Block(const ModelConfig& config, LayerWeights weights, std::size_t index);

  // x (T,C) -> (T,C):  h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
  //                    y = h + down(act(gate(m)) * up(m)),                 m = norm(h)
  // q and k may be normed by head, and what is added to x and h once more; the MLP may have no
  // gate. With joined projections the same in fewer and larger steps. in.recompute says what is
  // kept.
  Var apply(Tape& tape, const Var& x, const BlockInput& in);

  // Null where the model has no such projection.
  std::unique_ptr<LinearMap>& site(Site s) { return sites_[static_cast<std::size_t>(s)]; }
  void set_joined(std::unique_ptr<JoinedProjections> joined) { joined_ = std::move(joined); }
  const JoinedProjections* joined() const { return joined_.get(); }

 private:
  Var project(Tape& tape, Site s, const Var& x, const BlockInput& in) {
    return sites_[static_cast<std::size_t>(s)]->apply(tape, x, in.mode);
  }
  // Projections of norm(x), side by side.
  std::vector<Var> project_all(Tape& tape, std::initializer_list<Site> sites, const NormWeights& w,
                               const Var& x, const BlockInput& in);
  // residual + the projection of x
  Var project_onto(Tape& tape, Site s, const Var& residual, const Var& x, const BlockInput& in);
  // Both of them where there is a cache, `w` null for x as it is, `addend` for each: a step of
  // generation in few launches.
  std::vector<Var> project_cached(Tape& tape, std::initializer_list<Site> sites,
                                  const NormWeights* w, const Var& x, const Tensor& addend,
                                  const BlockInput& in);
  // The two halves: x -> h and h -> y.
  Var attention_half(Tape& tape, const Var& x, const BlockInput& in);
  Var feed_forward_half(Tape& tape, const Var& h, const BlockInput& in);
  bool adapted(Site first, Site last) const;
  // x (T,C) -> (T,H*D): attention of the normed stream's queries, keys and values.
  Var attend(Tape& tape, const Var& x, const BlockInput& in, std::int64_t margin);
  // The rest of it in a step of generation, q (T,H*D), k, v (T,G*D) not rotated yet: the cache
  // grows by k and v.
  Var attend_cached(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v,
                    const Tensor& table, const BlockInput& in);
  // h (T,C) -> (T,F): what the down projection reads.
  Var inner(Tape& tape, const Var& h, const BlockInput& in, std::int64_t margin);

  std::size_t index_;
  bool local_;
  MlpKind mlp_;
  AttentionShape attention_;
  int head_dim_;
  double eps_;
  NormWeights attn_norm_, post_attn_norm_, ffn_norm_, post_ffn_norm_;
  Weight q_norm_, k_norm_;
  std::array<std::unique_ptr<LinearMap>, kSiteCount> sites_;
  std::unique_ptr<JoinedProjections> joined_;
};

}  // namespace lk
