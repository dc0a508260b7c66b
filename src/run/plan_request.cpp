// What a run's rows need memory for: the largest of its micro-batches and evaluations.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "nn/evaluation.h"
#include "run/run_inputs.h"
#include "run/samples.h"

namespace lk {
namespace {

using Lengths = std::vector<std::int64_t>;

std::int64_t sum_of(const Lengths& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

// What attention lays out of documents: whole panels of keys, of up to 32 on the CPU.
std::int64_t laid_out(const Lengths& documents) {
  constexpr std::int64_t kPanel = 32;
  std::int64_t keys = 0;
  for (std::int64_t n : documents) keys += (n + kPanel - 1) / kPanel * kPanel;
  return keys;
}

// The `count` largest, each up to `times` times; the largest again where there are fewer.
Lengths largest(Lengths all, std::int64_t count, std::int64_t times) {
  std::stable_sort(all.begin(), all.end(), std::greater<>());
  Lengths taken;
  for (std::int64_t one : all)
    for (std::int64_t i = 0; i < times && std::ssize(taken) < count; ++i) taken.push_back(one);
  taken.resize(static_cast<std::size_t>(count), all.front());
  return taken;
}

// Of the batches added, those of which one needs most memory, whatever a token, a key that is laid out and
// a row of logits cost.
class LargestBatches {
 public:
  void add(PlannedBatch batch) {
    const Counts counts{sum_of(batch.documents), laid_out(batch.documents), batch.supervised};
    const auto holds = [&](const Counts& a, const Counts& b, std::int64_t slack) {
      for (std::size_t i = 0; i < a.size(); ++i)
        if (a[i] < b[i] - slack * (b[i] / kSlack)) return false;
      return true;
    };
    for (const auto& [kept, _] : batches_)
      if (holds(kept, counts, 1)) return;
    std::erase_if(batches_, [&](const auto& kept) { return holds(counts, kept.first, 0); });
    batches_.emplace_back(counts, std::move(batch));
  }
  std::vector<PlannedBatch> take() {
    std::vector<PlannedBatch> batches;
    for (auto& [_, batch] : batches_) batches.push_back(std::move(batch));
    return batches;
  }

 private:
  using Counts = std::array<std::int64_t, 3>;
  // A batch that has less than a 128th more than another is left out: many batches would else be ahead of
  // each other by a little, and each takes a plan of its own.
  static constexpr std::int64_t kSlack = 128;
  std::vector<std::pair<Counts, PlannedBatch>> batches_;
};

}  // namespace

std::vector<std::int64_t> RunInputs::longest_batch(const FinetuneSettings& s) const {
  // A micro-batch may end in another epoch than it begins in, and so have a row again.
  const std::int64_t n = sampler->bins_per_epoch();
  const std::int64_t epochs =
      steps * s.grad_accum <= n / s.batch ? 1 : (n - std::gcd(n, s.batch) + s.batch - 1) / n + 1;
  return largest(s.packing ? tokens_of(sampler->epoch(0), row_lengths()) : row_lengths(), s.batch,
                 epochs);
}

PlannedBatch RunInputs::planned(std::span<const Row* const> rows) const {
  const std::int64_t added = virtual_tokens(methods);
  PlannedBatch batch{{}, 0};
  for (const Row* row : rows) {
    batch.documents.push_back(std::ssize(row->ids) + added);
    batch.supervised += row->n_supervised(added > 0);
  }
  return batch;
}

// A run of very many rows is looked at as far as takes seconds, and then taken to have the largest batch
// there can be: at once if a single step takes longer.
std::vector<PlannedBatch> RunInputs::largest_batches(const FinetuneSettings& s, bool padded) const {
  constexpr double kMostRows = 1 << 22;
  const double rows_per_step = static_cast<double>(s.batch * s.grad_accum) *
                               static_cast<double>(data.rows.size()) /
                               static_cast<double>(sampler->bins_per_epoch());
  const auto seen = std::min(steps, static_cast<std::int64_t>(kMostRows / rows_per_step));
  LargestBatches all;
  for (std::int64_t step = 0; step < seen; ++step) {
    std::vector<PlannedBatch> batches;
    for (std::int64_t g = 0; g < s.grad_accum; ++g)
      batches.push_back(planned(rows_of(step * s.grad_accum + g)));
    std::int64_t most = 0;
    for (const PlannedBatch& batch : batches) most = std::max(most, batch.supervised);
    for (PlannedBatch& batch : batches) {
      if (padded) batch.supervised = most;
      all.add(std::move(batch));
    }
  }
  if (seen < steps) all.add({longest_batch(s)});
  return all.take();
}

std::vector<PlannedBatch> RunInputs::largest_evaluations(std::int64_t batch_tokens) const {
  LargestBatches all;
  for (const auto& [begin, end] :
       evaluation_batches(eval.rows, batch_tokens, virtual_tokens(methods))) {
    std::vector<const Row*> rows;
    for (std::size_t i = begin; i < end; ++i) rows.push_back(&eval.rows[i]);
    all.add(planned(rows));
  }
  return all.take();
}

PlanRequest RunInputs::plan_request(const FinetuneSettings& s, const Backend& backend,
                                    DType dtype) const {
  PlanRequest r;
  r.model = model->config(), r.methods = methods, r.formats = formats;
  r.compute_dtype = dtype;
  r.batch = s.batch, r.grad_accum = s.grad_accum, r.seq_len = *s.seq_len;
  r.row_lengths = longest_batch(s);
  r.micro_batches = largest_batches(s, backend.traits().can_record);
  r.evaluations = largest_evaluations(r.batch_tokens());
  if (s.sample_every > 0 && s.sample_every < steps)
    r.sample_prompt =
        longest_sample_prompt(eval.rows, *s.samples, *s.seq_len + virtual_tokens(methods));
  r.recompute = s.recompute;
  r.streamed = s.streamed;
  r.fast_reduce = s.fast_reduce;
  return r;
}

}  // namespace lk
