// A custom loss in place of cross-entropy: what TrainerConfig::loss takes.
#pragma once

#include <functional>
#include <span>

#include "nn/transformer.h"

namespace lk {

// Returns the loss (1) of a micro-batch from the logits (n,V) of the tokens whose next token is
// supervised and from batch.targets (n), those next tokens. `scale` is 1 / (supervised tokens of
// the whole step): a mean over tokens is scale * sum. The losses of a step's micro-batches are
// added up. Compose it of the ops of autograd/ops.h, or use loss_on_host().
using LossFunction =
    std::function<Var(Tape&, const Var& logits, const TokenBatch& batch, double scale)>;

// The rows of a micro-batch as numbers on the host.
struct LossRows {
  std::int64_t vocab = 0;
  std::span<const std::int32_t> targets;  // n
  std::span<const double> logits;         // n x vocab, row by row
  std::span<double> gradient;             // dloss/dlogits, zero at first: to be filled in
  double scale = 1;
  std::span<const double> logits_of(std::size_t row) const {
    return logits.subspan(row * static_cast<std::size_t>(vocab), static_cast<std::size_t>(vocab));
  }
  std::span<double> gradient_of(std::size_t row) const {
    return gradient.subspan(row * static_cast<std::size_t>(vocab), static_cast<std::size_t>(vocab));
  }
};

// Makes a LossFunction of a host function that returns the loss and fills `gradient`. For trying
// things out: all logits of a micro-batch travel to the host as doubles and back, where they take
// 24 n V bytes.
LossFunction loss_on_host(std::function<double(const LossRows&)> loss);

}  // namespace lk
