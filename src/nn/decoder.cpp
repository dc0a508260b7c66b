#include "nn/decoder.h"

#include <algorithm>
#include <cmath>

#include "nn/cached_ops.h"
#include "nn/streamed_base.h"

namespace lk {

Decoder::Decoder(Transformer& model, std::int64_t prefill_rows, bool record)
    : model_(model),
      prefill_rows_(prefill_rows > 0 ? prefill_rows : model.backend().traits().prefill_rows),
      recorder_(model.backend(),
                record && model.backend().traits().can_record && !is_streamed(model.weights()),
                {.recordings = 1, .launched = 1}) {}

bool Decoder::reserve(std::int64_t slots, std::int64_t capacity) {
  if (cache_ && cache_->capacity() >= capacity && cache_->slots() >= slots) return false;
  recorder_.clear();  // before the memory that recordings use is freed
  slots_ahead_.clear();
  cache_.reset();
  cache_ = std::make_unique<KvCache>(model_.backend(), model_.config(), model_.compute_dtype(),
                                     capacity, slots);
  return true;
}

void Decoder::grow(std::int64_t capacity) {
  auto larger = std::make_unique<KvCache>(model_.backend(), model_.config(), model_.compute_dtype(),
                                          capacity, slots());
  for (std::int64_t slot = 0; slot < slots(); ++slot) {
    const std::int64_t n = cache_->length(slot), to = slot * capacity,
                       from = slot * cache_->capacity();
    larger->set_length(slot, n);
    if (n == 0) continue;
    for (std::size_t i = 0; i < static_cast<std::size_t>(model_.config().n_layers); ++i)
      for (Tensor KvCache::Layer::*kind : {&KvCache::Layer::k, &KvCache::Layer::v})
        model_.backend().copy((larger->layer(i).*kind).slice_rows(to, to + n),
                              (cache_->layer(i).*kind).slice_rows(from, from + n));
  }
  recorder_.clear();  // before the memory that recordings use is freed
  slots_ahead_.clear();
  cache_ = std::move(larger);
}

Tensor Decoder::submit(std::span<const SequencePart> parts) {
  slots_ahead_.clear();
  const bool decodes = std::all_of(parts.begin(), parts.end(),
                                   [](const SequencePart& p) { return p.ids.size() == 1; });
  Tensor logits;
  if (decodes) {
    logits = step(parts, false).logits;
  } else {
    recorder_.forget_launched();
    logits = model_.next_logits(make_cached_batch(*cache_, parts), *cache_);
  }
  advance_cache(*cache_, parts);
  return logits;
}

Decoder::Choice Decoder::submit_choosing(std::span<const SequencePart> parts) {
  slots_ahead_.clear();
  const Step done = step(parts, true);
  advance_cache(*cache_, parts);
  return {model_.backend().read_later(done.chosen)};
}

bool Decoder::can_go_on() const {
  return !slots_ahead_.empty() &&
         std::all_of(slots_ahead_.begin(), slots_ahead_.end(),
                     [&](std::int64_t slot) { return cache_->length(slot) < capacity(); });
}

Decoder::Choice Decoder::go_on() {
  check(can_go_on(), "Decoder::go_on: no step to go on from");
  const Step* recorded = recorder_.find({std::ssize(slots_ahead_), true});
  check(recorded, "Decoder::go_on: the step's recording is gone");
  recorder_.replay();
  for (std::int64_t slot : slots_ahead_) cache_->set_length(slot, cache_->length(slot) + 1);
  return {model_.backend().read_later(recorded->chosen)};
}

std::int32_t Decoder::Choice::id(std::size_t i) const {
  const double id = ids->value(i);
  if (std::isnan(id)) throw NonFiniteError("generate: the logits are not finite");
  return static_cast<std::int32_t>(id);
}

// A decoding step. It is recorded if the step right before it was of the same kind (Note [Recorded steps]
// in tensor/recorder.h). One recording is kept, as its logits stay in its memory.
Decoder::Step Decoder::step(std::span<const SequencePart> parts, bool chooses) {
  const StepSizes sizes{std::ssize(parts), chooses};
  bool runs_recorded = true;
  Step step;
  if (Step* recorded = recorder_.find(sizes)) {
    refill_cached_batch(recorded->batch, *cache_, parts);
    recorder_.replay();
    step = *recorded;
  } else {
    step.batch = make_cached_batch(*cache_, parts);
    if (chooses)
      step.chosen = model_.backend().empty(Tag::Workspace, DType::F32, {std::ssize(parts)});
    const auto work = [&] {
      step.logits = model_.next_logits(step.batch, *cache_);
      if (chooses)
        cached::choose_next(model_.backend(),
                            {step.chosen, step.batch.ids, step.batch.positions,
                             step.batch.cache_rows, step.batch.keys.device_ends},
                            step.logits);
    };
    runs_recorded = recorder_.record(sizes, step, work);
    if (!runs_recorded) work();
  }
  if (chooses && runs_recorded)
    for (const SequencePart& part : parts) slots_ahead_.push_back(part.slot);
  return step;
}

void Decoder::copy_slot(std::int64_t to, std::int64_t from, std::int64_t common, std::int64_t n) {
  check(common <= n && n <= cache_->length(from), "KV cache: copies ", n, " tokens of a slot of ",
        cache_->length(from));
  const std::int64_t capacity = cache_->capacity();
  auto rows = [&](const Tensor& all, std::int64_t slot) {
    return all.slice_rows(slot * capacity + common, slot * capacity + n);
  };
  if (common < n)
    for (std::size_t i = 0; i < static_cast<std::size_t>(model_.config().n_layers); ++i)
      for (const Tensor& all : {cache_->layer(i).k, cache_->layer(i).v})
        model_.backend().copy(rows(all, to), rows(all, from));
  cache_->set_length(to, n);
}

void HostLogits::download(const Tensor& logits) {
  const Tensor rows = dense(logits);
  dtype_ = rows.dtype(), vocab_ = static_cast<std::size_t>(rows.cols());
  raw_.resize(rows.bytes());
  rows.backend().download(raw_.data(), rows, rows.bytes());
  floats_.resize(static_cast<std::size_t>(rows.numel()));
}

std::span<const float> HostLogits::row(std::int64_t i) {
  const std::size_t begin = static_cast<std::size_t>(i) * vocab_;
  const std::span<float> row = std::span(floats_).subspan(begin, vocab_);
  dispatch_float(dtype_, [&]<class T>() {
    const T* from = reinterpret_cast<const T*>(raw_.data()) + begin;
    std::transform(from, from + vocab_, row.begin(), [](T x) { return static_cast<float>(x); });
  });
  return row;
}

}  // namespace lk
