// Loss and perplexity of a model on rows of text.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "nn/transformer.h"

namespace lk {

struct Evaluation {
  double loss = 0;  // mean over supervised tokens
  double perplexity = 0;
  std::int64_t tokens = 0, supervised_tokens = 0, rows = 0;
};

// How several processes share an evaluation: each computes every `size`-th batch. After each round, of
// a batch for each, all get what the others have computed, so none runs far ahead of another.
struct EvaluationShare {
  int rank = 0, size = 1;
  // Of each process's numbers, given its own. Empty for one process.
  std::function<std::vector<std::vector<double>>(const std::vector<double>&)> gather = {};

  bool computes(std::int64_t batch) const { return batch % size == rank; }
  // Of each process that has a batch in this round, given this one's numbers.
  std::vector<std::vector<double>> round(const std::vector<double>& own) const {
    return size > 1 ? gather(own) : std::vector<std::vector<double>>{own};
  }
};

// Rows [begin, end) of each batch of an evaluation: at most batch_tokens tokens, of which each row has
// `virtual_tokens` more than its own, and at least one row.
std::vector<std::pair<std::size_t, std::size_t>> evaluation_batches(std::span<const Row> rows,
                                                                    std::int64_t batch_tokens,
                                                                    std::int64_t virtual_tokens);

// Evaluates in those batches. The loss is the
// sum of all losses, batch by batch, over the number of supervised tokens: the same however many
// processes share it.
Evaluation evaluate(Transformer& model, std::span<const Row> rows, std::int64_t batch_tokens,
                    const EvaluationShare& share = {});

}  // namespace lk
