#include "dist/shared_step.h"

#include <algorithm>

namespace lk {
namespace {

constexpr std::int64_t kAlignment = 64;  // in numbers: kernels read vectors

std::int64_t aligned(std::int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }

}  // namespace

SharedStep::SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
                       double clip)
    : model_(model), method_(method), transport_(transport), rank_(rank), size_(size), clip_(clip) {
  check(transport_ || size_ == 1, "SharedStep: several processes and nothing between them");
}

void SharedStep::run(const TrainStep& train_step, const StepTensors& step, AdamW& optimizer) {
  sum_gradients(train_step, step);
  optimizer.grad_norm_sq(step.norm_sq);
  optimizer.update(static_cast<float>(clip_), step.norm_sq);
}

void SharedStep::sum_gradients(const TrainStep& train_step, const StepTensors& step) {
  std::vector<std::size_t> counted;  // a micro-batch without supervised tokens adds nothing
  for (std::size_t i = 0; i < step.micro_batches.size(); ++i)
    if (step.micro_batches[i].n_supervised > 0) counted.push_back(i);
  if (size_ == 1 && counted.size() == 1) return compute(train_step, step, counted[0], step.loss);
  allocate(step.loss.dtype());
  const auto n = static_cast<int>(counted.size());
  for (int first = 0; first < n; first += size_) {
    const int n_computed = std::min(size_, n - first);
    if (rank_ < n_computed) {
      compute(train_step, step, counted[static_cast<std::size_t>(first + rank_)], loss_);
      pack();
    }
    add_round(n_computed, first == 0);
  }
  share_sum();
  unpack();
  model_.backend().copy(step.loss, loss_);
}

// Leaves the micro-batch's gradient where the parameters have theirs, and its share of the loss.
void SharedStep::compute(const TrainStep& train_step, const StepTensors& step, std::size_t i,
                         const Tensor& loss) {
  method_.zero_grad();
  Tape tape(model_.backend());
  const Var share = train_step.loss(tape, step.micro_batches[i], step, i);
  model_.backend().sum(loss, GradMode::Write, 1.0, share.value());
  tape.backward(share);
  ++micro_steps_;
  head_gradients_ += method_.head_gradients(step.micro_batches[i].n_supervised);
}

std::int64_t SharedStep::sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches) {
  const std::int64_t rounds = (micro_batches + size - 1) / size;
  return (rounds + 1) * (size - 1) * (numel / size) * static_cast<std::int64_t>(sizeof(float));
}

void SharedStep::allocate(DType dtype) {
  if (all_.defined()) return;
  Backend& backend = model_.backend();
  std::int64_t n = kAlignment;  // the loss comes first
  for (const Parameter* p : method_.parameters()) n += aligned(p->numel());
  slice_ = aligned((n + size_ - 1) / size_);
  all_ = backend.empty(Tag::Workspace, dtype, {size_ * slice_});
  backend.fill(all_, 0);  // what lies between the gradients is sent too
  sum_ = backend.empty(Tag::Workspace, dtype, {slice_});
  if (size_ > 1) received_ = backend.empty(Tag::Workspace, dtype, {size_ * slice_});
  loss_ = all_.slice_rows(0, 1);
  n = kAlignment;
  for (const Parameter* p : method_.parameters()) {
    places_.push_back(all_.slice_rows(n, n + p->numel()));
    n += aligned(p->numel());
  }
}

void SharedStep::pack() {
  const std::vector<Parameter*> parameters = method_.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i]->has_grad())
      model_.backend().copy(places_[i], flat(parameters[i]->grad()));
    else
      model_.backend().fill(places_[i], 0);
}

void SharedStep::unpack() {
  method_.zero_grad();
  const std::vector<Parameter*> parameters = method_.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    model_.backend().copy(flat(parameters[i]->sink().tensor), places_[i]);
}

Tensor SharedStep::slice(const Tensor& all, int rank) const {
  return all.slice_rows(rank * slice_, (rank + 1) * slice_);
}

// Adds the gradients of the first `n_computed` processes to this one's slice of the sum, in their
// order.
void SharedStep::add_round(int n_computed, bool first) {
  std::vector<Transport::Piece> sends, receives;
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    if (rank_ < n_computed) sends.push_back({r, slice(all_, r)});
    if (r < n_computed) receives.push_back({r, slice(received_, r)});
  }
  if (transport_) transport_->exchange(sends, receives);
  Backend& backend = model_.backend();
  for (int r = 0; r < n_computed; ++r) {
    const Tensor part = slice(r == rank_ ? all_ : received_, r);
    if (first && r == 0)
      backend.copy(sum_, part);
    else
      backend.add(sum_, sum_, part);
  }
}

// Puts the whole sum into all_.
void SharedStep::share_sum() {
  model_.backend().copy(slice(all_, rank_), sum_);
  std::vector<Transport::Piece> sends, receives;
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    sends.push_back({r, sum_});
    receives.push_back({r, slice(all_, r)});
  }
  if (transport_) transport_->exchange(sends, receives);
}

}  // namespace lk
