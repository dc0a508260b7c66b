#include "dist/shared_step.h"

#include <algorithm>

namespace lk {
namespace {

std::int64_t divided(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

Tensor numbers(const Tensor& x, std::int64_t from, std::int64_t to) {
  return x.reshape({x.numel()}).slice_rows(from, to);
}

}  // namespace

SharedStep::SharedStep(Transformer& model, Method& method, Transport* transport, int rank, int size,
                       const Settings& settings)
    : model_(model),
      method_(method),
      transport_(transport),
      rank_(rank),
      size_(size),
      settings_(settings),
      kernels_(*model.backend().slice_kernels()),
      parameters_(method.parameters()),
      slices_(parameters_, kernels_.piece(), size) {
  check(transport_ || size_ == 1, "SharedStep: several processes and nothing between them");
  const std::int64_t longest = slices_.longest();
  n_chunks_ = divided(longest, std::max(settings.chunk / size_, OptimizerSlices::kAlignment));
  slice_ = OptimizerSlices::aligned(divided(longest, n_chunks_));
}

void SharedStep::join(TrainerConfig& config) {
  config.run_step = [this](StepParts& parts, AdamW& optimizer) { return run(parts, optimizer); };
  config.slices = own_slices();
  config.gather_gradients = [this] { gather_gradients(); };
}

std::vector<AdamW::Slice> SharedStep::own_slices() const {
  return size_ > 1 ? slices_.of(rank_) : std::vector<AdamW::Slice>();
}

StepTensors SharedStep::run(StepParts& parts, AdamW& optimizer) {
  std::int64_t updated = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    updated += optimizer.slice(i).end - optimizer.slice(i).begin;
  check(updated == slices_.numel(rank_), "SharedStep: an optimizer of ", updated,
        " numbers, not of ", slices_.numel(rank_));
  std::vector<std::size_t> counted;  // a micro-batch without supervised tokens adds nothing
  for (std::size_t i = 0; i < parts.sizes().size(); ++i)
    if (parts.sizes()[i].supervised > 0) counted.push_back(i);
  const auto n = static_cast<int>(counted.size());
  const auto mode_of = [&](int first) {
    return settings_.fast_reduce && first > 0 ? GradMode::Add : GradMode::Write;
  };
  bool recorded = parts.has_recording_of_finish();
  for (int first = 0; first + rank_ < n; first += size_)
    recorded &=
        parts.has_recording(counted[static_cast<std::size_t>(first + rank_)], 1, mode_of(first));
  wait_ = !recorded;
  if (wait_) model_.backend().synchronize();
  const Tensor loss = empty(1);
  for (int first = 0; first < n; first += size_) {
    Round round{std::min(size_, n - first), first == 0, first + size_ >= n};
    if (rank_ < round.n_computed) {
      const std::size_t i = counted[static_cast<std::size_t>(first + rank_)];
      const GradMode mode = mode_of(first);
      const auto work = [this, mode, &train_step = parts.train_step()](const StepTensors& one) {
        compute(train_step, one, mode);
      };
      const Tensor share = parts.run(i, 1, work, mode).loss;
      if (mode == GradMode::Write)
        model_.backend().copy(loss, share);
      else
        model_.backend().add(loss, loss, share);
      ++micro_steps_;
      head_gradients_ += method_.head_gradients(parts.sizes()[i].supervised);
    }
    for (Parameter* p : parameters_) p->sink();  // all gradients are there, to be added to
    if (settings_.fast_reduce) {
      if (!round.last) continue;
      round = {std::min(size_, n), true, true};
    }
    if (size_ == 1 && round.first && round.last) break;
    if (round.first && !round.last) sum_ = empty(n_chunks_ * slice_);
    parts.run_between([&] { add_round(round, gradients(loss)); });
  }
  sum_ = {};
  const Tensor norm_sq = model_.backend().empty(Tag::Workspace, optimizer.dtype(), {1});
  parts.run_between([&] { share_norm(norm_sq, loss); });
  StepTensors step = parts.finish(loss, norm_sq, [this, &optimizer](const StepTensors& tensors) {
    optimizer.update(static_cast<float>(settings_.clip), tensors.norm_sq);
  });
  if (size_ == 1) return step;
  parts.run_between([&] {
    gather([this](std::size_t t, std::int64_t from, std::int64_t to) {
      return t > 0 ? numbers(parameters_[t - 1]->value(), from, to) : Tensor();
    });
  });
  Copies copies;  // in the compute dtype, which the update of slices leaves as they are
  for (Parameter* p : parameters_) {
    p->changed();
    if (p->has_compute_copy()) copies.push_back({p->compute(), p->value()});
  }
  kernels_.copy_many(copies);
  wait_ = true;
  return step;
}

// Leaves the micro-batch's gradient where the parameters have theirs, or adds it there, and leaves its
// share of the loss. A step's first writes, rather than all adding to zeros: that has the bytes of the
// other order and saves a pass. Where it has no gradient it leaves zeros, to which later ones may add.
void SharedStep::compute(const TrainStep& train_step, const StepTensors& one, GradMode mode) {
  Backend& backend = model_.backend();
  if (mode == GradMode::Write) method_.zero_grad();
  Tape tape(backend);
  const Var share = train_step.loss(tape, one.micro_batches[0], one, 0);
  backend.sum(one.loss, GradMode::Write, 1.0, share.value());
  tape.backward(share);
  for (Parameter* p : parameters_)
    if (!p->has_grad()) backend.fill(p->sink().tensor, 0);
}

std::int64_t SharedStep::sent_bytes(std::int64_t numel, int size, std::int64_t micro_batches,
                                    bool fast_reduce) {
  const std::int64_t rounds = fast_reduce ? 1 : divided(micro_batches, size);
  return (rounds + 1) * (size - 1) * (numel / size) * static_cast<std::int64_t>(sizeof(float));
}

Tensor SharedStep::empty(std::int64_t numel) const {
  return model_.backend().empty(Tag::Workspace, stat_dtype(model_.compute_dtype()), {numel});
}

SharedStep::View SharedStep::gradients(const Tensor& loss) const {
  return [this, loss](std::size_t t, std::int64_t from, std::int64_t to) {
    return t > 0 ? numbers(parameters_[t - 1]->grad(), from, to) : loss;
  };
}

void SharedStep::add_round(const Round& round, const View& gradients) {
  for (std::int64_t c = 0; c < n_chunks_; ++c) add_chunk(round, gradients, c);
}

void SharedStep::add_chunk(const Round& round, const View& gradients, std::int64_t chunk) {
  Backend& backend = model_.backend();
  const Range own = part(rank_, chunk);

  // Each process gets its slice of the gradients of all.
  const bool computed = rank_ < round.n_computed;
  const Tensor all = computed ? empty(size_ * slice_) : Tensor();
  const std::int64_t n_received = own.size() > 0 ? round.n_computed - computed : 0;
  const Tensor received = n_received > 0 ? empty(n_received * own.size()) : Tensor();
  std::vector<Tensor> own_slice;  // of each process that computed one
  std::vector<Transport::Piece> sends, receives;
  Copies copies;
  if (computed) {
    backend.fill(all, 0);  // what lies between the gradients is sent too
    for (int r = 0; r < size_; ++r) {
      const Range range = part(r, chunk);
      const Tensor slice = all.slice_rows(r * slice_, r * slice_ + range.size());
      add_copies(copies, Direction::IntoBuffer, slice, range, gradients);
      if (r != rank_ && range.size() > 0) sends.push_back({r, slice});
    }
    kernels_.copy_many(copies);
    copies.clear();
  }
  for (int r = 0; r < round.n_computed && own.size() > 0; ++r) {
    const std::int64_t at = r == rank_ ? r * slice_ : std::ssize(receives) * own.size();
    own_slice.push_back((r == rank_ ? all : received).slice_rows(at, at + own.size()));
    if (r != rank_) receives.push_back({r, own_slice.back()});
  }
  exchange(sends, receives);
  if (own.size() == 0) return;

  // Add them, to the sum of earlier rounds or in place.
  const bool only = round.first && round.last;
  const std::int64_t at = chunk * slice_;
  const Tensor sum = only ? own_slice[0] : sum_.slice_rows(at, at + own.size());
  if (round.first && !only) backend.copy(sum, own_slice[0]);
  for (std::size_t r = round.first; r < own_slice.size(); ++r) backend.add(sum, sum, own_slice[r]);
  if (!round.last) return;
  add_copies(copies, Direction::OutOfBuffer, sum, own, gradients);
  kernels_.copy_many(copies);
}

void SharedStep::share_norm(const Tensor& norm_sq, const Tensor& loss) {
  const Tensor sums =
      model_.backend().empty(Tag::Workspace, kernels_.sum_dtype(), {slices_.n_sums()});
  const auto of = [&](int r) {
    return sums.slice_rows(slices_.sums(r).begin, slices_.sums(r).end);
  };
  std::vector<Tensor> own;
  const View view = gradients(loss);
  slices_.for_each_part(slices_.range(rank_),
                        [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t) {
                          if (t > 0) own.push_back(view(t, from, to));
                        });
  if (!own.empty()) kernels_.square_sums(of(rank_), own);
  std::vector<Transport::Piece> sends, receives;
  const int with_loss = slices_.with_loss();
  for (int r = 0; r < size_; ++r) {
    if (r == rank_) continue;
    if (of(rank_).numel() > 0) sends.push_back({r, of(rank_)});
    if (of(r).numel() > 0) receives.push_back({r, of(r)});
    if (rank_ == with_loss) sends.push_back({r, loss});
    if (r == with_loss) receives.push_back({r, loss});
  }
  exchange(sends, receives);
  kernels_.add_square_sums(norm_sq, sums);
}

void SharedStep::gather(const View& view) {
  for (std::int64_t c = 0; c < n_chunks_; ++c) {
    const Tensor all = empty(size_ * slice_);
    const auto slice = [&](int r) {
      return all.slice_rows(r * slice_, r * slice_ + part(r, c).size());
    };
    const Tensor own = slice(rank_);
    model_.backend().fill(own, 0);
    Copies copies;
    add_copies(copies, Direction::IntoBuffer, own, part(rank_, c), view);
    kernels_.copy_many(copies);
    std::vector<Transport::Piece> sends, receives;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      if (own.numel() > 0) sends.push_back({r, own});
      if (slice(r).numel() > 0) receives.push_back({r, slice(r)});
    }
    exchange(sends, receives);
    copies.clear();
    for (int r = 0; r < size_; ++r)
      if (r != rank_) add_copies(copies, Direction::OutOfBuffer, slice(r), part(r, c), view);
    kernels_.copy_many(copies);
  }
}

void SharedStep::gather_gradients() {
  if (size_ > 1) gather(gradients({}));
}

WholeMoments SharedStep::gather_moments(const AdamW& optimizer) {
  const auto own = [&](const Tensor& (AdamW::*moment)(std::size_t) const) {
    return gather_on_host([&, moment](std::size_t t, std::int64_t from, std::int64_t to) {
      if (t == 0) return Tensor();
      const std::int64_t begin = optimizer.slice(t - 1).begin;
      return numbers((optimizer.*moment)(t - 1), from - begin, to - begin);
    });
  };
  WholeMoments whole;
  whole.m = own(&AdamW::moment_m);
  whole.v = own(&AdamW::moment_v);
  return whole;
}

std::vector<std::vector<float>> SharedStep::gather_on_host(const View& own) {
  std::vector<std::vector<float>> whole;
  for (const Parameter* p : parameters_)
    if (rank_ == 0) whole.emplace_back(static_cast<std::size_t>(p->numel()));
  for (std::int64_t c = 0; c < n_chunks_; ++c) {
    const int n_slices = rank_ == 0 ? size_ : 1;
    const Tensor all = empty(n_slices * slice_);
    const auto slice = [&](int r) {
      const std::int64_t at = rank_ == 0 ? r * slice_ : 0;
      return all.slice_rows(at, at + part(r, c).size());
    };
    model_.backend().fill(all, 0);
    Copies copies;
    add_copies(copies, Direction::IntoBuffer, slice(rank_), part(rank_, c), own);
    kernels_.copy_many(copies);
    std::vector<Transport::Piece> sends, receives;
    if (rank_ > 0 && slice(rank_).numel() > 0) sends.push_back({0, slice(rank_)});
    for (int r = 1; r < size_ && rank_ == 0; ++r)
      if (slice(r).numel() > 0) receives.push_back({r, slice(r)});
    exchange(sends, receives);
    for (int r = 0; r < size_ && rank_ == 0; ++r) {
      const std::vector<float> values = to_host<float>(slice(r));
      slices_.for_each_part(
          part(r, c), [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t at) {
            if (t > 0) std::copy_n(values.begin() + at, to - from, whole[t - 1].begin() + from);
          });
    }
  }
  return whole;
}

OptimizerSlices::Range SharedStep::part(int rank, std::int64_t chunk) const {
  const Range range = slices_.range(rank);
  const std::int64_t begin = std::min(range.begin + chunk * slice_, range.end);
  return {begin, std::min(begin + slice_, range.end)};
}

void SharedStep::add_copies(Copies& copies, Direction direction, const Tensor& buffer, Range range,
                            const View& view) const {
  slices_.for_each_part(
      range, [&](std::size_t t, std::int64_t from, std::int64_t to, std::int64_t at) {
        const Tensor x = buffer.slice_rows(at, at + to - from), y = view(t, from, to);
        if (!y) return;
        if (direction == Direction::IntoBuffer)
          copies.push_back({x, y});
        else
          copies.push_back({y, x});
      });
}

void SharedStep::exchange(std::span<const Transport::Piece> sends,
                          std::span<const Transport::Piece> receives) {
  if (!transport_) return;
  transport_->exchange(sends, receives);
  if (wait_) model_.backend().synchronize();
}

}  // namespace lk
