#include "dist/shared_step.h"

#include <algorithm>

namespace lk {
namespace {

constexpr std::int64_t kAlignment = 64;  // in numbers: kernels read vectors

std::int64_t divided(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }
std::int64_t aligned(std::int64_t n) { return divided(n, kAlignment) * kAlignment; }

Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }

}  // namespace

SharedStep::SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
                       double clip, std::int64_t chunk)
    : model_(model), method_(method), transport_(transport), rank_(rank), size_(size), clip_(clip) {
  check(transport_ || size_ == 1, "SharedStep: several processes and nothing between them");
  numel_ = kAlignment;  // the loss comes first
  for (const Parameter* p : method_.parameters()) numel_ += aligned(p->numel());
  n_chunks_ = divided(numel_, chunk);
  slice_ = aligned(divided(numel_, n_chunks_ * size_));
}

StepTensors SharedStep::run(StepParts& parts, AdamW& optimizer) {
  std::vector<std::size_t> counted;  // a micro-batch without supervised tokens adds nothing
  for (std::size_t i = 0; i < parts.sizes().size(); ++i)
    if (parts.sizes()[i].supervised > 0) counted.push_back(i);
  const auto n = static_cast<int>(counted.size());
  const Tensor loss = empty(1);
  for (int first = 0; first < n; first += size_) {
    const Round round{std::min(size_, n - first), first == 0, first + size_ >= n};
    if (rank_ < round.n_computed) {
      const std::size_t i = counted[static_cast<std::size_t>(first + rank_)];
      const auto work = [this, &train_step = parts.train_step()](const StepTensors& one) {
        compute(train_step, one);
      };
      model_.backend().copy(loss, parts.run(i, 1, work).loss);
      ++micro_steps_;
      head_gradients_ += method_.head_gradients(parts.sizes()[i].supervised);
    }
    if (n == 1 && size_ == 1) break;
    if (round.first && !round.last) sum_ = empty(n_chunks_ * slice_);
    parts.run_between([&] { add_round(round, loss); });
  }
  sum_ = {};
  for (Parameter* p : method_.parameters()) p->sink();  // all gradients are there
  return parts.finish(loss, [this, &optimizer](const StepTensors& step) {
    optimizer.grad_norm_sq(step.norm_sq);
    optimizer.update(static_cast<float>(clip_), step.norm_sq);
  });
}

// Leaves the micro-batch's gradient where the parameters have theirs, and its share of the loss.
void SharedStep::compute(const TrainStep& train_step, const StepTensors& one) {
  Backend& backend = model_.backend();
  method_.zero_grad();
  Tape tape(backend);
  const Var share = train_step.loss(tape, one.micro_batches[0], one, 0);
  backend.sum(one.loss, GradMode::Write, 1.0, share.value());
  tape.backward(share);
  for (Parameter* p : method_.parameters())
    if (!p->has_grad()) backend.fill(p->sink().tensor, 0);
}

std::int64_t SharedStep::sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches) {
  const std::int64_t rounds = divided(micro_batches, size);
  return (rounds + 1) * (size - 1) * (numel / size) * static_cast<std::int64_t>(sizeof(float));
}

Tensor SharedStep::empty(std::int64_t numel) const {
  return model_.backend().empty(Tag::Workspace, stat_dtype(model_.compute_dtype()), {numel});
}

// Adds the gradients of the processes that computed one to the sum, in their order. The last round
// leaves the sum, and that of the losses, in the place of each process's own.
void SharedStep::add_round(const Round& round, const Tensor& loss) {
  for (std::int64_t c = 0; c < n_chunks_; ++c) add_chunk(round, loss, c * size_ * slice_);
}

void SharedStep::add_chunk(const Round& round, const Tensor& loss, std::int64_t begin) {
  Backend& backend = model_.backend();
  const Tensor all = empty(size_ * slice_);
  const auto slice = [&](int r) { return all.slice_rows(r * slice_, (r + 1) * slice_); };

  // Each process gets its slice of the gradients of all.
  const bool computed = rank_ < round.n_computed;
  const int n_received = round.n_computed - computed;
  const Tensor received = n_received > 0 ? empty(n_received * slice_) : Tensor();
  std::vector<Tensor> own_slice;  // of each process that computed one
  std::vector<Transport::Piece> sends, receives;
  for (int r = 0; r < round.n_computed; ++r) {
    if (r == rank_) {
      own_slice.push_back(slice(r));
      continue;
    }
    const std::int64_t at = std::ssize(receives) * slice_;
    own_slice.push_back(received.slice_rows(at, at + slice_));
    receives.push_back({r, own_slice.back()});
  }
  if (computed) {
    backend.fill(all, 0);  // what lies between the gradients is sent too
    for_each_part(all, loss, begin, [&](const Tensor& x, const Tensor& y) { backend.copy(x, y); });
    for (int r = 0; r < size_; ++r)
      if (r != rank_) sends.push_back({r, slice(r)});
  }
  exchange(sends, receives);

  // Add them, to the sum of earlier rounds or in place.
  const bool only = round.first && round.last;
  const std::int64_t at = begin / size_;
  const Tensor sum = only ? own_slice[0] : sum_.slice_rows(at, at + slice_);
  if (round.first && !only) backend.copy(sum, own_slice[0]);
  for (std::size_t r = round.first; r < own_slice.size(); ++r) backend.add(sum, sum, own_slice[r]);
  if (!round.last) return;

  // Each gives its slice of the sum to the others.
  if (!(only && rank_ == 0)) backend.copy(slice(rank_), sum);
  sends.clear(), receives.clear();
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    sends.push_back({r, slice(rank_)});
    receives.push_back({r, slice(r)});
  }
  exchange(sends, receives);
  for_each_part(all, loss, begin, [&](const Tensor& x, const Tensor& y) { backend.copy(y, x); });
}

void SharedStep::exchange(std::span<const Transport::Piece> sends,
                          std::span<const Transport::Piece> receives) {
  if (transport_) transport_->exchange(sends, receives);
}

template <class Copy>
void SharedStep::for_each_part(const Tensor& all, const Tensor& loss, std::int64_t begin,
                               const Copy& copy) const {
  const std::int64_t end = begin + all.numel();
  std::int64_t at = 0;  // of a tensor in the gradient as one vector
  const auto part = [&](const Tensor& x) {
    const std::int64_t from = std::max(begin, at), to = std::min(end, at + x.numel());
    if (from < to)
      copy(all.slice_rows(from - begin, to - begin), flat(x).slice_rows(from - at, to - at));
    at += aligned(x.numel());
  };
  part(loss);
  for (const Parameter* p : method_.parameters()) part(p->grad());
}

}  // namespace lk
