#include "nn/transformer.h"

#include <algorithm>
#include <cmath>

namespace lk {
Transformer::Transformer(Backend& backend, ModelConfig config, ModelWeights weights,
                         DType compute_dtype, std::int64_t max_positions)
    : backend_(backend),
      config_(std::move(config)),
      dtype_(compute_dtype),
      max_positions_(max_positions) {
  set_first_position(0);
  // transformers rounds the factor to the embedding's dtype; here that is the compute dtype.
  if (config_.scaled_embedding) {
    const double factor = std::sqrt(static_cast<double>(config_.hidden_size));
    embedding_scale_ =
        dtype_ == DType::BF16
            ? static_cast<double>(static_cast<float>(bf16(static_cast<float>(factor))))
        : dtype_ == DType::F32 ? static_cast<float>(factor)
                               : factor;
  }
  set_weights(std::move(weights));
}

void Transformer::set_weights(ModelWeights weights) {
  weights_ = std::move(weights);
  check(static_cast<std::int64_t>(weights_.layers.size()) == config_.n_layers,
        "transformer: ", weights_.layers.size(), " layers of weights for ", config_.n_layers);
  blocks_.clear();
  for (std::size_t i = 0; i < weights_.layers.size(); ++i)
    blocks_.push_back(std::make_unique<Block>(config_, weights_.layers[i], i));
  final_norm_ = {weights_.final_norm, weights_.final_norm_bias};
}

void Transformer::set_first_position(std::int64_t first) {
  const std::int64_t end = first + max_positions_;
  if (config_.learned_positions && end > config_.max_position)
    throw UsageError(concat("sequences of ", end, " tokens: the model has learned ",
                            config_.max_position, " positions"));
  first_position_ = first;
  if (config_.learned_positions) return;
  const DType angles = stat_dtype(dtype_);
  rope_table_ = local_rope_table_ = {};  // freed first: the ledger's peak is then what stays
  rope_table_ = rope_table(backend_, config_, end, angles).slice_rows(first, end);
  local_rope_table_ = config_.local_rope_theta == 0
                          ? rope_table_
                          : rope_table(backend_, local_inverse_frequencies(config_), end, angles)
                                .slice_rows(first, end);
}

Var Transformer::embed(Tape& tape, const Tensor& ids, const BlockInput& in) {
  Var x = embedding(tape, weights_.embedding, tables_.embedding, ids, embedding_scale_, in.margin);
  if (input_place_) x = input_place_->apply(tape, x, in.virtual_rows);
  if (!config_.learned_positions) return x;
  Weight table = weights_.positions;
  if (first_position_ > 0)
    table = Weight(table.name(), table.values().slice_rows(first_position_, table.shape()[0]));
  return add(tape, x, embedding(tape, table, tables_.positions, in.positions));
}

Var Transformer::final_norm(Tape& tape, const Var& x) {
  return norm(tape, x, final_norm_, config_.rms_eps);
}

Var Transformer::through_blocks(Tape& tape, const Tensor& ids, BlockInput in) {
  in.rope_table = rope_table_, in.local_rope_table = local_rope_table_;
  if (tape.recording() && recompute_.offload > 0)
    in.offloads = std::make_shared<Offloads>(backend_);
  Var x = embed(tape, ids, in);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (tape.recording()) {
      const auto layer = static_cast<std::int64_t>(i);
      in.recompute = recompute_.of(layer);
      in.offload = recompute_.offloads(layer, std::ssize(blocks_));
    }
    x = blocks_[i]->apply(tape, x, in);
  }
  return x;
}

Var Transformer::hidden(Tape& tape, const TokenBatch& batch, const ForwardMode& mode) {
  return through_blocks(tape, batch.ids,
                        {.positions = batch.positions,
                         .segments = batch.segments,
                         .virtual_rows = {batch.virtual_rows, {}},
                         .mode = mode,
                         .joined = joined_enabled_,
                         .margin = joined_enabled_ ? margin_ : 0});
}

Var Transformer::supervised_states(Tape& tape, const TokenBatch& batch, const ForwardMode& mode) {
  check(batch.n_supervised > 0, "loss: the batch has no supervised token");
  const std::int64_t virtual_rows = batch.virtual_rows.defined() ? batch.virtual_rows.numel() : 0;
  check(virtual_tokens() == 0 ? virtual_rows == 0
                              : virtual_rows > 0 && virtual_rows % virtual_tokens() == 0,
        "loss: ", virtual_rows, " rows of virtual tokens, the model has ", virtual_tokens(),
        " before each document");
  check(batch.segments.longest() <= max_positions_, "loss: a row of ", batch.segments.longest(),
        " tokens, positions up to ", max_positions_);
  Var x = hidden(tape, batch, mode);
  // Tokens without a target are dropped before the norm and the head: they cost nothing there.
  Var wanted = gather_rows(tape, x, batch.rows);
  x = Var();
  return final_norm(tape, wanted);
}

Var Transformer::loss(Tape& tape, const TokenBatch& batch, const LossScale& scale,
                      const ForwardMode& mode) {
  Var normed = supervised_states(tape, batch, mode);
  return head_loss(tape, normed, weights_.head, tables_.head, batch.targets, scale, loss_rows());
}

Tensor Transformer::token_losses(const TokenBatch& batch) {
  Tape tape(backend_, Tape::Mode::NoGrad);
  return head_losses(supervised_states(tape, batch, {}).value(), weights_.head, batch.targets,
                     loss_rows());
}

std::int64_t Transformer::loss_rows() const {
  const std::int64_t row_bytes = config_.vocab_size * static_cast<std::int64_t>(dtype_size(dtype_));
  const std::int64_t within = backend_.traits().loss_bytes / row_bytes;
  return std::clamp<std::int64_t>(std::max(within, config_.hidden_size / 4), 16, 4096);
}

Var Transformer::supervised_logits(Tape& tape, const TokenBatch& batch, const ForwardMode& mode) {
  return linear(tape, supervised_states(tape, batch, mode), weights_.head, tables_.head);
}

Tensor Transformer::logits(const TokenBatch& batch, const Tensor& rows, const ForwardMode& mode) {
  Tape tape(backend_, Tape::Mode::NoGrad);
  Var x = hidden(tape, batch, mode);
  if (rows.defined()) x = gather_rows(tape, x, rows);
  return linear(tape, final_norm(tape, x), weights_.head).value();
}

Tensor Transformer::next_logits(const CachedBatch& batch, const KvCache& cache) {
  for (std::size_t i = 0; i < batch.keys.ends.size(); ++i)
    check(batch.keys.ends[i] - batch.keys.begins[i] <= max_positions_, "generate: position ",
          batch.keys.ends[i] - batch.keys.begins[i], " of ", max_positions_);
  Tape tape(backend_, Tape::Mode::NoGrad);
  const ForwardMode mode{.documents = &batch.segments, .variants = &batch.variants};
  Var x = through_blocks(tape, batch.ids,
                         {.positions = batch.positions,
                          .segments = batch.segments,
                          .virtual_rows = batch.virtual_rows,
                          .cached = &batch,
                          .cache = &cache,
                          .mode = mode});
  // If each sequence has one new token there is nothing to select.
  if (batch.n_tokens() > batch.segments.count()) x = gather_rows(tape, x, batch.last);
  return linear(tape, final_norm(tape, x), weights_.head).value();
}

void Transformer::visit_sites(const SiteVisitor& f) {
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    for (int s = 0; s < kSiteCount; ++s) {
      Site site = static_cast<Site>(s);
      std::unique_ptr<LinearMap>& map = blocks_[layer]->site(site);
      if (map) f(site_path(config_, layer, site), layer, site, map);
    }
  }
}

void Transformer::visit_norms(const std::function<void(const std::string&, NormWeights&)>& f) {
  const Family& family = family_of(config_);
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer)
    blocks_[layer]->visit_norms([&](Role role, NormWeights& norm) {
      f(module_path(family, role, static_cast<std::int64_t>(layer)), norm);
    });
  f(module_path(family, Role::FinalNorm), final_norm_);
}

void Transformer::set_recompute(const Recompute& recompute) {
  require_possible(recompute, backend_);
  recompute_ = recompute;
}

void Transformer::leave_joined() noexcept {
  for (const auto& block : blocks_) block->set_joined(nullptr);
  margin_ = 0;
  joined_enabled_ = true;
}

void Transformer::set_joined(std::size_t layer, std::unique_ptr<JoinedProjections> joined) {
  margin_ = std::max({margin_, joined->thin_of(joined->o), joined->thin_of(joined->down)});
  blocks_.at(layer)->set_joined(std::move(joined));
}

void Transformer::visit_joined(const std::function<void(const JoinedLinear&)>& f) const {
  for (const auto& block : blocks_)
    if (const JoinedProjections* joined = block->joined())
      for (const auto* projections : {&joined->qkv, &joined->o, &joined->gate_up, &joined->down})
        if (*projections) f(**projections);
}

void Transformer::move_weight(std::size_t layer, Site site, const Weight& w) {
  weights_.layers.at(layer)[site].weight = w;
  blocks_.at(layer)->site(site)->frozen().set_weight(w);
}

}  // namespace lk
