#include "nn/evaluation.h"

#include <cmath>

namespace lk {

std::vector<std::pair<std::size_t, std::size_t>> evaluation_batches(std::span<const Row> rows,
                                                                    std::int64_t batch_tokens,
                                                                    std::int64_t virtual_tokens) {
  std::vector<std::pair<std::size_t, std::size_t>> batches;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t n = std::ssize(rows[i].ids) + virtual_tokens;
    tokens += n;
    if (batches.empty() || tokens > batch_tokens) batches.emplace_back(i, i), tokens = n;
    batches.back().second = i + 1;
  }
  return batches;
}

Evaluation evaluate(Transformer& model, std::span<const Row> rows, std::int64_t batch_tokens,
                    const EvaluationShare& share) {
  require(batch_tokens >= 1, "evaluate: batch_tokens ", batch_tokens, ": must be at least 1");
  Evaluation result;
  double sum = 0;
  std::vector<double> own;  // the sum of this process's batch of the round
  std::int64_t n_batches = 0;
  auto end_round = [&] {
    for (const std::vector<double>& batch : share.round(own))
      for (double x : batch) sum += x;
    own.clear();
  };
  for (const auto& [begin, end] : evaluation_batches(rows, batch_tokens, model.virtual_tokens())) {
    std::vector<const Row*> batch;
    for (std::size_t i = begin; i < end; ++i) batch.push_back(&rows[i]);
    const HostBatch host = make_host_batch(batch, model.virtual_tokens());
    check_batch(host, model.batch_limits());
    result.tokens += host.n_tokens();
    result.supervised_tokens += host.n_supervised();
    result.rows += static_cast<std::int64_t>(batch.size());
    if (share.computes(n_batches)) {
      Tape tape(model.backend(), Tape::Mode::NoGrad);
      TokenBatch b = empty_batch(model.backend(), size_of(host));
      upload_batch(b, host);
      own = {b.n_supervised > 0 ? to_host_f64(model.loss(tape, b, 1.0, {}).value())[0] : 0};
    }
    if (++n_batches % share.size == 0 || end == rows.size()) end_round();
  }
  if (result.supervised_tokens == 0)
    throw InputError("evaluate: no supervised token in these rows");
  result.loss = sum / static_cast<double>(result.supervised_tokens);
  result.perplexity = std::exp(result.loss);
  return result;
}

}  // namespace lk
