// Loss and perplexity of a model on rows of text.
#pragma once

#include <span>

#include "nn/transformer.h"

namespace lk {

struct Evaluation {
  double loss = 0;  // mean over supervised tokens
  double perplexity = 0;
  std::int64_t tokens = 0, supervised_tokens = 0, rows = 0;
};

// Packs rows into batches of at most batch_tokens tokens (at least one row each). The loss is the
// sum of all losses over the number of supervised tokens, whatever the batches.
Evaluation evaluate(Transformer& model, std::span<const Row> rows, std::int64_t batch_tokens);

}  // namespace lk
