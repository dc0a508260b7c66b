// Generation with a KV cache: batches of unequal prompts, where each sequence leaves as it ends and
// makes room for the next.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nn/decoder.h"
#include "nn/sampling.h"
#include "text/text_stream.h"

namespace lk {

struct GenerationRequest {
  std::vector<std::int32_t> prompt = {};  // at least one token
  SamplingSettings sampling = {};
  std::int32_t variant = -1;  // index into an AdapterSet; -1 is the base model
};

struct Generation {
  std::vector<std::int32_t> ids;  // without the stop token, but with the tokens of a stop text
  std::string text;               // if there is a Tokenizer: ends before a stop text
  bool stopped = false;           // a stop token or text ended it, not max_tokens
  // Seconds from admission to the first token, and from there to the last. The device is shared
  // with other sequences.
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t reused = 0;  // tokens of the prompt whose keys and values were cached already
};

// Callbacks of a generation; each may be empty. Returning false ends that request's generation.
struct GenerationEvents {
  std::function<bool(std::size_t request, std::int32_t id)> on_token = {};
  std::function<bool(std::size_t request, std::string_view text)> on_text = {};  // whole characters
  std::function<void(std::size_t request, const Generation&)> on_done = {};
};

struct GeneratorSettings {
  std::int64_t max_batch = 16;    // sequences at once; each beam is one
  std::int64_t capacity = 0;      // most tokens of a sequence with its prompt; 0: the model's
  std::int64_t prefill_rows = 0;  // prompt tokens per pass; 0: what suits the device
  bool reuse_prefix = false;      // reuse a slot's tokens if a prompt begins with them
  bool record = true;             // decoding steps may run as one recording (Backend::record)
};

// The cache takes what the requests of a call need. Where slots are reused it grows with them, at
// least to twice its size, and keeps what they hold.
//
// Note [Batch independence]. What a sequence reads is its own: its tokens, its positions, its slot
// of the cache, and its draws keyed by (seed, position). Prompts are cut into passes at multiples
// of prefill_rows, counted from the prompt's own start. So a sequence's tokens do not depend on its
// neighbours, as long as the backend's products do not: the CPU's own tiles sum in an order that
// depends on K alone. Products of a library may choose another kernel for another number of rows;
// logits then differ by rounding, and only a near-tie can show it.
class Generator {
 public:
  // `tokenizer` makes text and finds stop texts; it may be null. Model and tokenizer must outlive
  // the Generator.
  Generator(Transformer& model, const Tokenizer* tokenizer, const GeneratorSettings& settings = {});
  ~Generator();

  // Continues every prompt; results are in the order of the requests. Throws as check() does;
  // OutOfMemoryError. With beams (nn/beam_search.h) a text comes at its end, and callbacks end
  // nothing.
  std::vector<Generation> run(std::span<const GenerationRequest> requests,
                              const GenerationEvents& events = {});
  // Throws UsageError naming the request whose prompt is empty, does not fit the model's positions, or
  // which asks for stop texts without a tokenizer, and if the requests do not all have the same number
  // of beams.
  void check(std::span<const GenerationRequest> requests) const;
  // Forgets what the slots hold (which only reuse_prefix can notice).
  void forget();
  Transformer& model() const { return decoder_.model(); }
  std::int64_t max_batch() const { return settings_.max_batch; }

 private:
  struct Slot;
  struct Run;
  std::int64_t most_tokens() const;
  std::int64_t longest(std::span<const GenerationRequest> requests) const;
  Tensor submit(std::span<const SequencePart> parts);
  Decoder::Choice submit_choosing(std::span<const SequencePart> parts);
  void hold(std::span<const SequencePart> parts);

  Decoder decoder_;
  const Tokenizer* tokenizer_;
  GeneratorSettings settings_;
  std::vector<Slot> slots_;
};

// Generator::run() for one prompt, without text. `on_token` (may be empty) sees each new id;
// returning false ends the generation.
Generation generate(Transformer& model, std::span<const std::int32_t> prompt,
                    const SamplingSettings& settings,
                    const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace lk
