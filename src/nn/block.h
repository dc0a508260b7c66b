// One decoder layer of the LLaMA family.
#pragma once

#include <array>
#include <memory>

#include "autograd/checkpoint.h"
#include "autograd/fused_linear.h"
#include "nn/batch.h"
#include "nn/cached_batch.h"
#include "nn/config.h"
#include "nn/linear_map.h"
#include "nn/model_weights.h"
#include "nn/recompute.h"

namespace lk {

// The seven projections, in the order in which they run.
enum class Site : std::uint8_t { Q, K, V, O, Gate, Up, Down };
inline constexpr int kSiteCount = 7;
// "self_attn.q_proj", ... : the module's path inside its layer, as Hugging Face names it.
const char* site_path(Site site);
// "q_proj", ...
const char* site_name(Site site);

// What a block reads besides the residual stream. Handles, not references: a block that runs again
// in backward keeps a copy.
struct BlockInput {
  Tensor rope_table;                    // (P, D)
  Tensor positions;                     // (T) I32
  Segments segments;                    // of the queries
  const CachedBatch* cached = nullptr;  // with a cache only
  const KvCache* cache = nullptr;
  ForwardMode mode;
  bool fused = false;       // use the block's fused projections, if it has any
  std::int64_t margin = 0;  // of the residual stream then
  RecomputeKind recompute = RecomputeKind::None;  // of this block
  std::shared_ptr<Offloads> offloads = {};        // of this forward, if there are any
};

// A block's projections for training on a GPU: see Note [Fused projections]. Made by lora/fuse.cpp.
struct FusedProjections {
  FusedLinear qkv, o, gate_up, down;
};

class Block {
 public:
  Block(const ModelConfig& config, LayerWeights weights, std::size_t index);

  // x (T,C) -> (T,C):  h = x + o(attention(rope(q(n)), rope(k(n)), v(n))),  n = norm(x)
  //                    y = h + down(swiglu(gate(m), up(m))),               m = norm(h)
  // With fused projections the same in fewer and larger steps. in.recompute says what is kept.
  Var apply(Tape& tape, const Var& x, const BlockInput& in);

  std::unique_ptr<LinearMap>& site(Site s) { return sites_[static_cast<std::size_t>(s)]; }
  void set_fused(std::unique_ptr<FusedProjections> fused) { fused_ = std::move(fused); }
  const FusedProjections* fused() const { return fused_.get(); }

 private:
  Var project(Tape& tape, Site s, const Var& x, const BlockInput& in) {
    return sites_[static_cast<std::size_t>(s)]->apply(tape, x, in.mode);
  }
  // The two halves: x -> h and h -> y.
  Var attention_half(Tape& tape, const Var& x, const BlockInput& in);
  Var feed_forward_half(Tape& tape, const Var& h, const BlockInput& in);
  bool adapted(Site first, Site last) const;
  Var attend(Tape& tape, const Var& q, const Var& k, const Var& v, const BlockInput& in);

  std::size_t index_;
  AttentionShape attention_;
  int head_dim_;
  double eps_;
  Weight attn_norm_, ffn_norm_;
  std::array<std::unique_ptr<LinearMap>, kSiteCount> sites_;
  std::unique_ptr<FusedProjections> fused_;
};

}  // namespace lk
