// Decoder: a model with a KV cache, for whoever generates: passes over the next tokens of some of
// its sequences, and the logits on the host.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "nn/cached_batch.h"
#include "nn/transformer.h"
#include "tensor/readback.h"
#include "tensor/recorder.h"

namespace lk {

class Decoder {
 public:
  // `prefill_rows`: tokens of prompts in a pass; 0: what suits the device. The model must outlive the
  // Decoder. With `record`, decoding steps may run as one recording (Backend::record).
  Decoder(Transformer& model, std::int64_t prefill_rows, bool record);

  // Makes room for `slots` sequences of `capacity` tokens, at least. Returns whether the cache is a
  // new one, whose slots are empty. Throws OutOfMemoryError.
  bool reserve(std::int64_t slots, std::int64_t capacity);
  // Tokens that a slot has room for, and slots; 0 before reserve().
  std::int64_t capacity() const { return cache_ ? cache_->capacity() : 0; }
  std::int64_t slots() const { return cache_ ? cache_->slots() : 0; }
  // Makes room for `capacity` tokens in each slot, which keeps what it holds. While the larger cache
  // is filled the present one lives on. Throws OutOfMemoryError; the cache is then as it was.
  void grow(std::int64_t capacity);
  Transformer& model() const { return model_; }
  KvCache& cache() { return *cache_; }
  // A piece of a prompt ends at multiples of this many tokens, counted from the prompt's own start.
  std::int64_t prefill_rows() const { return prefill_rows_; }

  // Submits a pass over the parts and lengthens their slots. Returns the logits (n,V) of each part's
  // last token.
  Tensor submit(std::span<const SequencePart> parts);
  // Tokens that the device chose, on their way to the host.
  struct Choice {
    std::unique_ptr<Readback> ids;
    // Waits for the token of part i. Throws NonFiniteError.
    std::int32_t id(std::size_t i) const;
  };
  // Whether the device can choose tokens, so that a step need not wait for the host.
  bool chooses() const { return recorder_.enabled(); }
  // submit() of one token for each part, after which the device chooses the most likely next ones.
  Choice submit_choosing(std::span<const SequencePart> parts);
  // Whether go_on() is possible: the last step chose tokens, was recorded, and every slot has room.
  bool can_go_on() const;
  // The step of the same slots with the tokens that the device chose in the last one.
  Choice go_on();
  // Gives slot `to` the first n tokens of slot `from`, of which it has the first `common` already.
  void copy_slot(std::int64_t to, std::int64_t from, std::int64_t common, std::int64_t n);
  // Call it before the first step of a run: a step of an earlier run says nothing about this one.
  void begin() { recorder_.forget_launched(); }

 private:
  // The inputs of a decoding step, and the logits that it computes.
  struct Step {
    CachedBatch batch;
    Tensor logits, chosen;  // chosen: undefined in a step that leaves it to the host
  };
  // What recordings are told apart by.
  struct StepSizes {
    std::int64_t sequences;
    bool chooses;
    bool operator==(const StepSizes&) const = default;
  };
  Step step(std::span<const SequencePart> parts, bool chooses);

  Transformer& model_;
  std::int64_t prefill_rows_;
  std::unique_ptr<KvCache> cache_;
  Recorder<StepSizes, Step> recorder_;
  // Of the last step that was submitted, if it chose tokens and was recorded.
  std::vector<std::int64_t> slots_ahead_;
};

// A pass's logits on the host, as floats. The buffers are kept from step to step: getting memory
// from the system each time would take longer than working on it.
class HostLogits {
 public:
  // The only wait for the device in a step.
  void download(const Tensor& logits);
  // Row i; different threads may ask for different rows.
  std::span<const float> row(std::int64_t i);

 private:
  DType dtype_ = DType::F32;
  std::size_t vocab_ = 0;
  std::vector<std::byte> raw_;
  std::vector<float> floats_;
};

}  // namespace lk
