// Transformer: embedding -> blocks -> norm -> head. Frozen; src/lora puts adapters on its sites.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/batch.h"
#include "nn/block.h"
#include "nn/config.h"
#include "nn/model_weights.h"
#include "nn/places.h"

namespace lk {

class Transformer {
 public:
  // Takes over the weights. `max_positions` bounds every sequence (rotary angles are tabulated
  // once). Throws UsageError if the model has fewer learned positions.
  Transformer(Backend& backend, ModelConfig config, ModelWeights weights, DType compute_dtype,
              std::int64_t max_positions);

  Backend& backend() const { return backend_; }
  const ModelConfig& config() const { return config_; }
  DType compute_dtype() const { return dtype_; }
  std::int64_t max_positions() const { return max_positions_; }

  // loss (1) = scale * sum over supervised tokens of -log p(target). Full logits never exist.
  Var loss(Tape& tape, const TokenBatch& batch, const LossScale& scale, const ForwardMode& mode);
  // -log p(target) of each supervised token, (n), in the batch's order. No gradients.
  Tensor token_losses(const TokenBatch& batch);
  // logits (n,V) of the tokens whose next token is supervised, with gradients: for a custom loss.
  // Unlike in loss(), they exist all at once.
  Var supervised_logits(Tape& tape, const TokenBatch& batch, const ForwardMode& mode);
  // logits (n,V) of the given tokens of the batch (rows (n) I32; all of them if undefined). No
  // gradients.
  Tensor logits(const TokenBatch& batch, const Tensor& rows = {}, const ForwardMode& mode = {});
  // Writes the batch's keys and values to the cache and returns the logits (n,V) after the last
  // token of each part. Copies nothing from or to the host and leaves the slots' lengths alone: see
  // advance_cache().
  Tensor next_logits(const CachedBatch& batch, const KvCache& cache);

  // The places of a layer, and that before the blocks (null: empty), for methods to hang into.
  BlockPlaces& places(std::size_t layer) { return blocks_.at(layer)->places(); }
  InputPlace*& input_place() { return input_place_; }
  TablePlaces& tables() { return tables_; }
  // Virtual tokens before each document: a batch must have been made with as many.
  std::int64_t virtual_tokens() const { return input_place_ ? input_place_->tokens() : 0; }
  BatchLimits batch_limits() const {
    return {config_.vocab_size, max_positions_, virtual_tokens()};
  }
  // The position of each document's first token, 0 unless something stands before all of them that
  // is no part of a batch. Throws UsageError if the model has no positions for it.
  void set_first_position(std::int64_t first);

  // Called as f(module path, layer, site, map) for every projection, in running order. Paths are
  // Hugging Face's: "model.layers.0.self_attn.q_proj".
  using SiteVisitor =
      std::function<void(const std::string&, std::size_t, Site, std::unique_ptr<LinearMap>&)>;
  void visit_sites(const SiteVisitor& f);
  // Called as f(module path, norm) for every norm; the final one comes last.
  void visit_norms(const std::function<void(const std::string&, NormWeights&)>& f);

  // Gives layer i its joined projections, which view the same weights. Every pass without a KV
  // cache uses them while they are enabled.
  void set_joined(std::size_t layer, std::unique_ptr<JoinedProjections> joined);
  // Takes all joined projections away. The weights stay where they are.
  void leave_joined() noexcept;
  void enable_joined(bool enabled) { joined_enabled_ = enabled; }
  // Calls f for all joined projections, layer by layer.
  void visit_joined(const std::function<void(const JoinedLinear&)>& f) const;
  // Sets what training keeps and what it recomputes. Throws UsageError if the device can't do it.
  void set_recompute(const Recompute& recompute);
  // Replaces a layer's projection by one with the same values in other memory.
  void move_weight(std::size_t layer, Site site, const Weight& w);

  std::int64_t n_parameters() const { return config_.n_parameters(); }
  const ModelWeights& weights() const { return weights_; }
  // Builds the model anew of other weights of the same shapes. Its places are then empty.
  void set_weights(ModelWeights weights);
  // Rows of the chunks in which head and cross-entropy work: bounds the logits that exist at once to about
  // the device's loss_bytes, or a quarter of the head's: fewer rows take longer to read it than to multiply.
  std::int64_t loss_rows() const;

 private:
  // Embedded tokens (T,C), plus learned positions if the model has them. A constant.
  Var embed(Tape& tape, const Tensor& ids, const BlockInput& in);
  Var final_norm(Tape& tape, const Var& x);
  // Hidden states (T,C) before the final norm.
  Var hidden(Tape& tape, const TokenBatch& batch, const ForwardMode& mode);
  void make_rope_tables();
  // The head's input (n,C) for the tokens whose next token is supervised.
  Var supervised_states(Tape& tape, const TokenBatch& batch, const ForwardMode& mode);
  Var through_blocks(Tape& tape, const Tensor& ids, BlockInput in);

  Backend& backend_;
  ModelConfig config_;
  ModelWeights weights_;  // shared with the blocks: a Weight is a handle
  DType dtype_;
  std::int64_t max_positions_;
  Tensor rope_table_, local_rope_table_;
  std::int64_t first_position_ = 0;
  double embedding_scale_ = 1;
  std::vector<std::unique_ptr<Block>> blocks_;
  InputPlace* input_place_ = nullptr;
  TablePlaces tables_;
  NormWeights final_norm_;
  bool joined_enabled_ = true;
  Recompute recompute_;
  std::int64_t margin_ = 0;  // of the residual stream: room for the widest thin columns
};

}  // namespace lk
