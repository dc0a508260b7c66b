// Generation with a KV cache: batches of unequal prompts, each sequence leaving as it ends and
// making room for the next.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nn/sampling.h"
#include "nn/transformer.h"
#include "tensor/recorder.h"
#include "text/text_stream.h"

namespace lk {

struct GenerationRequest {
  std::vector<std::int32_t> prompt;  // at least one token
  SamplingSettings sampling;
  std::int32_t variant = -1;  // of the model: an index into an AdapterSet; -1 is the base
};

struct Generation {
  std::vector<std::int32_t> ids;  // without the stop token, with the tokens of a stop text
  std::string text;               // with a Tokenizer: ends before a stop text
  bool stopped = false;           // by a stop token or text, not by max_tokens
  // From its admission to its first token, and from there to its last. Others share the device.
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t reused = 0;  // tokens of the prompt whose keys and values were there already
};

// What a caller may watch; each may be empty. Returning false ends that generation.
struct GenerationEvents {
  std::function<bool(std::size_t request, std::int32_t id)> on_token;
  std::function<bool(std::size_t request, std::string_view text)> on_text;  // whole characters
  std::function<void(std::size_t request, const Generation&)> on_done;
};

struct GeneratorSettings {
  std::int64_t max_batch = 16;    // sequences at a time
  std::int64_t capacity = 0;      // tokens of a sequence, prompt included; 0: as the requests need
  std::int64_t prefill_rows = 0;  // prompt tokens of a pass; 0: what suits the device
  bool reuse_prefix = false;      // a slot's earlier tokens count if a prompt begins with them
  bool record = true;             // decoding steps may run as one recording (Backend::record)
};

// Note [Batch independence]. What a sequence reads is its own: its tokens, its positions, its slot
// of the cache, its draws keyed by (seed, position). Prompts are cut into passes at multiples of
// prefill_rows of their own. So a sequence's tokens do not depend on its neighbours, as long as the
// backend's products do not: the CPU's own tiles sum in an order that depends on K alone. Products
// of a library may choose another kernel for another number of rows; then logits differ by rounding
// and only a near-tie can tell.
class Generator {
 public:
  // `tokenizer` makes text and finds stop texts; may be null. Both must outlive this.
  Generator(Transformer& model, const Tokenizer* tokenizer, const GeneratorSettings& settings = {});
  ~Generator();

  // Continues every prompt; results in the order of the requests. Throws UsageError naming the
  // request's prompt if it is empty, does not fit the model's positions, or asks for stop texts
  // without a tokenizer; OutOfMemoryError.
  std::vector<Generation> run(std::span<const GenerationRequest> requests,
                              const GenerationEvents& events = {});
  // Forgets what slots hold (only reuse_prefix would notice).
  void forget();
  Transformer& model() { return model_; }

 private:
  struct Slot;
  struct Run;
  // A decoding step: its inputs and the logits that it computes.
  struct DecodingStep {
    CachedBatch batch;
    Tensor logits;
  };
  Tensor submit(std::span<const SequencePart> parts);
  Tensor decoded_logits(std::span<const SequencePart> parts);

  Transformer& model_;
  const Tokenizer* tokenizer_;
  GeneratorSettings settings_;
  std::unique_ptr<KvCache> cache_;
  std::vector<Slot> slots_;
  Recorder<std::int64_t, DecodingStep> recorder_;  // by the number of sequences
};

// One prompt without text: Generator::run() for a single request. `on_token` (may be empty) sees
// each new id; returning false ends the generation.
Generation generate(Transformer& model, std::span<const std::int32_t> prompt,
                    const SamplingSettings& settings,
                    const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace lk
