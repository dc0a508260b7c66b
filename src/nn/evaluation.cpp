#include "nn/evaluation.h"

#include <cmath>

namespace lk {

Evaluation evaluate(Transformer& model, std::span<const Row> rows, std::int64_t batch_tokens,
                    const EvaluationShare& share) {
  require(batch_tokens >= 1, "evaluate: batch_tokens ", batch_tokens, ": must be at least 1");
  Evaluation result;
  std::vector<double> own;  // the sums of this process's batches
  std::size_t next = 0, n_batches = 0;
  while (next < rows.size()) {
    std::vector<const Row*> batch;
    std::int64_t tokens = 0;
    while (next < rows.size()) {
      const std::int64_t n = static_cast<std::int64_t>(rows[next].ids.size());
      if (!batch.empty() && tokens + n > batch_tokens) break;
      tokens += n;
      batch.push_back(&rows[next++]);
    }
    const HostBatch host = make_host_batch(batch, model.virtual_tokens());
    check_batch(host, model.batch_limits());
    result.tokens += host.n_tokens();
    result.supervised_tokens += host.n_supervised();
    result.rows += static_cast<std::int64_t>(batch.size());
    const bool mine =
        n_batches++ % static_cast<std::size_t>(share.size) == static_cast<std::size_t>(share.rank);
    if (!mine) continue;
    Tape tape(model.backend(), Tape::Mode::NoGrad);
    TokenBatch b = empty_batch(model.backend(), size_of(host));
    upload_batch(b, host);
    own.push_back(b.n_supervised > 0 ? to_host_f64(model.loss(tape, b, 1.0, {}).value())[0] : 0);
  }
  const std::vector<std::vector<double>> all =
      share.size > 1 ? share.gather(own) : std::vector<std::vector<double>>{own};
  double sum = 0;
  for (std::size_t i = 0; i < n_batches; ++i) sum += all.at(i % all.size()).at(i / all.size());
  if (result.supervised_tokens == 0)
    throw InputError("evaluate: no supervised token in these rows");
  result.loss = sum / static_cast<double>(result.supervised_tokens);
  result.perplexity = std::exp(result.loss);
  return result;
}

}  // namespace lk
