// LoraLinear: y = W x + bias + s B (A dropout(x)). Only A and B are Parameters.
// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#pragma once

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lora/dora.h"
#include "lora/lora_init.h"
#include "nn/linear_map.h"

namespace lk {

struct LoraShape {
  std::int64_t rank = 8;
  double alpha = 8;
  float dropout = 0;
  // Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023
  bool rslora = false;
  bool dora = false;  // lora/dora.h
  // s = alpha / rank, or alpha / sqrt(rank)
  double scale() const {
    const auto r = static_cast<double>(rank);
    return alpha / (rslora ? std::sqrt(r) : r);
  }
};

class LoraLinear : public LinearMap {
 public:
  // A (R,in) is Kaiming-uniform with a = sqrt 5, that is U(-1/sqrt(in), 1/sqrt(in)), drawn from
  // Philox keyed by (seed, site). B (out,R) is zero, so a fresh adapter changes nothing; with
  // shape.dora, its magnitude is the norms of the rows of W, so it changes nothing either. `path` is
  // the module's path, "model.layers.0.self_attn.q_proj"; `site` is unique in the model.
  LoraLinear(Backend& backend, std::string path, std::uint32_t site,
             std::unique_ptr<FrozenLinear> base, const LoraShape& shape, std::uint64_t seed,
             DType compute_dtype);

  Var apply(Tape& tape, const Var& x, const ForwardMode& mode,
            Output output = Output::Read) override;
  void adapt(Tape& tape, const Tensor& y, const Tensor& x, const ForwardMode& mode) override;
  bool scales() const override { return dora_ && enabled_; }
  std::int64_t in_features() const override { return base_->in_features(); }
  std::int64_t out_features() const override { return base_->out_features(); }

  FrozenLinear& frozen() override { return *base_; }

  const std::string& path() const { return path_; }
  const LoraShape& shape() const { return shape_; }
  std::uint32_t site() const { return site_; }
  const FrozenLinear& base() const { return *base_; }
  Parameter& a() { return a_; }
  Parameter& b() { return b_; }
  const Parameter& a() const { return a_; }
  const Parameter& b() const { return b_; }
  Parameter* magnitude() { return dora_ ? &dora_->magnitude() : nullptr; }
  const Parameter* magnitude() const { return dora_ ? &dora_->magnitude() : nullptr; }
  const Dora* dora() const { return dora_.get(); }
  // A, B and, with DoRA, the magnitude.
  std::vector<Parameter*> parameters();
  // Says that the frozen projection is W - s B A of these factors, which were taken out of it. The
  // base alone is then frozen projection + s B A.
  void set_start(StartingFactors start) { start_ = std::move(start); }
  const StartingFactors* start() const { return start_ ? &*start_ : nullptr; }
  // Gives the frozen projection back; the layer is of no use afterwards.
  std::unique_ptr<FrozenLinear> release_base() { return std::move(base_); }
  // Disabled, the layer is the base alone, as if the adapter were not there.
  void set_enabled(bool enabled) { enabled_ = enabled; }

 private:
  std::string path_;
  std::uint32_t site_;
  std::unique_ptr<FrozenLinear> base_;
  LoraShape shape_;
  Parameter a_, b_;
  std::unique_ptr<Dora> dora_;
  std::optional<StartingFactors> start_;
  bool enabled_ = true;
};

// The op behind LoraLinear, for checks and embedders: x (T,K), w (N,K) frozen, bias (N) frozen or
// null, a (R,K) and b (N,R) trainable -> y (T,N) = x wᵀ + bias + scale (drop(x) aᵀ) bᵀ.
Var lora_linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias, Parameter& a,
                Parameter& b, double scale, float dropout, const RandomKey& key,
                Output output = Output::Read);

}  // namespace lk
