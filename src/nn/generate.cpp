#include "nn/generate.h"

#include <algorithm>
#include <chrono>
#include <deque>

#include "tensor/parts.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

std::size_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  return static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                                  a.begin());
}

}  // namespace

// A slot of the cache: the tokens whose keys and values it holds, and the variant that computed
// them.
struct Generator::Slot {
  std::vector<std::int32_t> held;
  std::int32_t variant = -1;
};

// The sequences of one call of run().
struct Generator::Run {
  struct Sequence {
    std::size_t request;
    std::int64_t slot;
    std::int64_t limit;                 // of new tokens
    std::vector<std::int32_t> history;  // prompt and new tokens
    std::optional<TextStream> text;
    Clock::time_point begun, first;
    bool done = false, cut = false;  // cut: on_text ended it
  };
  Generator& g;
  std::span<const GenerationRequest> requests;
  const GenerationEvents& events;
  std::vector<Generation> results;
  std::deque<std::size_t> waiting;
  std::vector<Sequence> active;  // in the order in which slots are used: rows of a step
  // A step's logits on the host, as downloaded and as floats. The buffers are kept from step to
  // step: getting memory from the system each time would take longer than working on it.
  std::vector<std::byte> raw_logits = {};
  std::vector<float> float_logits = {};

  std::int64_t limit_of(const GenerationRequest& r) const {
    return std::min(
        r.sampling.max_tokens,
        std::min(g.cache_->capacity(), g.model_.max_positions()) - std::ssize(r.prompt));
  }

  // Gives a waiting request a slot; with reuse_prefix, the slot that holds most of its beginning.
  void admit() {
    const std::size_t request = waiting.front();
    waiting.pop_front();
    const GenerationRequest& r = requests[request];
    std::int64_t best = -1;
    std::size_t best_common = 0;
    for (std::int64_t s = 0; s < g.cache_->slots(); ++s) {
      if (std::any_of(active.begin(), active.end(), [&](const auto& a) { return a.slot == s; }))
        continue;
      const Slot& slot = g.slots_[static_cast<std::size_t>(s)];
      const std::size_t common = g.settings_.reuse_prefix && slot.variant == r.variant
                                     ? common_prefix(slot.held, r.prompt)
                                     : 0;
      if (best < 0 || common > best_common) best = s, best_common = common;
    }
    // The last token always goes through the model: its logits are needed.
    best_common = std::min(best_common, r.prompt.size() - 1);
    Slot& slot = g.slots_[static_cast<std::size_t>(best)];
    slot.held.resize(best_common);
    slot.variant = r.variant;
    g.cache_->set_length(best, static_cast<std::int64_t>(best_common));
    results[request].reused = static_cast<std::int64_t>(best_common);
    Sequence s{request, best, limit_of(r), r.prompt, std::nullopt, Clock::now(), {}, false, false};
    const std::span<const std::int32_t> prompt = r.prompt;
    if (g.tokenizer_)
      s.text.emplace(*g.tokenizer_,
                     prompt.subspan(static_cast<std::size_t>(g.model_.virtual_tokens())),
                     r.sampling.stop);
    active.push_back(std::move(s));
  }

  // Takes the newly admitted prompts, active[first...], through the model and samples their first
  // tokens.
  void prefill(std::size_t first) {
    const std::int64_t rows = g.settings_.prefill_rows;
    std::vector<bool> pending(active.size(), true);
    for (bool more = true; more;) {
      more = false;
      std::vector<SequencePart> parts;
      std::vector<std::size_t> finishing;  // indices in `active`, by part
      std::int64_t total = 0;
      for (std::size_t i = first; i < active.size(); ++i) {
        if (!pending[i]) continue;
        Sequence& s = active[i];
        // Pieces end at multiples of `rows` of the sequence itself: see Note [Batch independence].
        const std::int64_t have = g.cache_->length(s.slot), all = std::ssize(s.history);
        const std::int64_t end = std::min(all, (have / rows + 1) * rows);
        if (!parts.empty() && total + end - have > rows) {
          more = true;
          continue;
        }
        total += end - have;
        parts.push_back({s.slot,
                         {s.history.begin() + have, s.history.begin() + end},
                         requests[s.request].variant});
        pending[i] = end < all;
        more = more || pending[i];
        finishing.push_back(pending[i] ? SIZE_MAX : i);
      }
      sample(g.submit(parts), finishing);
    }
  }

  void decode() {
    std::vector<SequencePart> parts;
    std::vector<std::size_t> all;
    for (std::size_t i = 0; i < active.size(); ++i) {
      const Sequence& s = active[i];
      parts.push_back({s.slot, {s.history.back()}, requests[s.request].variant});
      all.push_back(i);
    }
    sample(g.submit(parts), all);
  }

  // Row j of the logits belongs to active[which[j]], or to no sequence yet if that is SIZE_MAX.
  void sample(const Tensor& logits, const std::vector<std::size_t>& which) {
    if (std::all_of(which.begin(), which.end(), [](std::size_t i) { return i == SIZE_MAX; }))
      return;
    const Tensor rows = dense(logits);
    raw_logits.resize(rows.bytes());
    rows.backend().download(raw_logits.data(), rows, rows.bytes());  // the only wait for the device
    float_logits.resize(static_cast<std::size_t>(rows.numel()));
    std::vector<std::int32_t> ids(which.size());
    // A row has up to a quarter of a million numbers, so the threads share the rows of a batch.
    for_parts(std::ssize(which), 1, [&](std::int64_t j, std::int64_t) {
      const std::size_t i = which[static_cast<std::size_t>(j)];
      if (i == SIZE_MAX) return;
      const Sequence& s = active[i];
      ids[static_cast<std::size_t>(j)] = sample_token(
          float_row(rows, j), requests[s.request].sampling, std::ssize(s.history), s.history);
    });
    for (std::size_t j = 0; j < which.size(); ++j)
      if (which[j] != SIZE_MAX) take(active[which[j]], ids[j]);
  }

  std::span<const float> float_row(const Tensor& rows, std::int64_t j) {
    const auto V = static_cast<std::size_t>(rows.cols()), begin = static_cast<std::size_t>(j) * V;
    const std::span<float> row = std::span(float_logits).subspan(begin, V);
    dispatch_float(rows.dtype(), [&]<class T>() {
      const T* from = reinterpret_cast<const T*>(raw_logits.data()) + begin;
      std::transform(from, from + V, row.begin(), [](T x) { return static_cast<float>(x); });
    });
    return row;
  }

  void take(Sequence& s, std::int32_t id) {
    const SamplingSettings& sampling = requests[s.request].sampling;
    Generation& result = results[s.request];
    const auto now = Clock::now();
    if (result.ids.empty()) {
      s.first = now;
      result.prefill_seconds = seconds_between(s.begun, now);
    }
    result.decode_seconds = seconds_between(s.first, now);
    if (std::find(sampling.stop_ids.begin(), sampling.stop_ids.end(), id) !=
        sampling.stop_ids.end()) {
      result.stopped = s.done = true;
    } else {
      s.history.push_back(id);
      result.ids.push_back(id);
      if (events.on_token && !events.on_token(s.request, id)) s.done = true;
      if (s.text) {
        say(s, s.text->push(id));
        if (s.text->stopped()) result.stopped = s.done = true;
      }
      if (std::ssize(result.ids) >= s.limit) s.done = true;
    }
    if (!s.done) return;
    if (s.text && !s.text->stopped()) say(s, s.text->finish());
    if (events.on_done) events.on_done(s.request, result);
  }

  void say(Sequence& s, const std::string& text) {
    results[s.request].text += text;
    if (text.empty() || s.cut || !events.on_text) return;
    s.cut = !events.on_text(s.request, text);
    s.done = s.done || s.cut;
  }

  void remove_done() {
    std::erase_if(active, [](const Sequence& s) { return s.done; });
  }

  void go() {
    while (!waiting.empty() || !active.empty()) {
      const std::size_t first = active.size();
      while (!waiting.empty() && std::ssize(active) < g.cache_->slots()) admit();
      if (active.size() > first) prefill(first);
      remove_done();
      if (!active.empty()) decode();
      remove_done();
    }
  }
};

Generator::Generator(Transformer& model, const Tokenizer* tokenizer,
                     const GeneratorSettings& settings)
    : model_(model),
      tokenizer_(tokenizer),
      settings_(settings),
      recorder_(model.backend(), settings.record && model.backend().traits().can_record,
                {.recordings = 1, .launched = 1}) {
  check(settings.max_batch > 0, "Generator: max_batch ", settings.max_batch);
  if (settings_.prefill_rows <= 0) settings_.prefill_rows = model.backend().traits().prefill_rows;
}

Generator::~Generator() = default;

void Generator::forget() {
  for (Slot& slot : slots_) slot.held.clear();
}

// Submits a pass over the parts and records what the slots then hold. Returns the logits of each
// part's last token.
Tensor Generator::submit(std::span<const SequencePart> parts) {
  const bool decodes = std::all_of(parts.begin(), parts.end(),
                                   [](const SequencePart& p) { return p.ids.size() == 1; });
  Tensor logits;
  if (decodes) {
    logits = decoded_logits(parts);
  } else {
    recorder_.forget_launched();
    logits = model_.next_logits(make_cached_batch(*cache_, parts), *cache_);
  }
  advance_cache(*cache_, parts);
  for (const SequencePart& p : parts) {
    std::vector<std::int32_t>& held = slots_[static_cast<std::size_t>(p.slot)].held;
    held.insert(held.end(), p.ids.begin(), p.ids.end());
  }
  return logits;
}

// A decoding step. It is recorded if the step right before it had as many sequences (Note [Recorded
// steps] in tensor/recorder.h). One recording is kept, as its logits stay in its memory.
Tensor Generator::decoded_logits(std::span<const SequencePart> parts) {
  const std::int64_t n = std::ssize(parts);
  if (DecodingStep* step = recorder_.find(n)) {
    refill_cached_batch(step->batch, *cache_, parts);
    recorder_.replay();
    return step->logits;
  }
  DecodingStep step{make_cached_batch(*cache_, parts), {}};
  const auto work = [&] { step.logits = model_.next_logits(step.batch, *cache_); };
  if (!recorder_.record(n, step, work)) work();
  return step.logits;
}

std::vector<Generation> Generator::run(std::span<const GenerationRequest> prompts,
                                       const GenerationEvents& events) {
  std::vector<GenerationRequest> behind_virtual_tokens;
  std::span<const GenerationRequest> requests = prompts;
  if (const std::int64_t n = model_.virtual_tokens(); n > 0) {
    behind_virtual_tokens.assign(prompts.begin(), prompts.end());
    for (GenerationRequest& r : behind_virtual_tokens)
      for (std::int64_t j = n; j-- > 0 && !r.prompt.empty();)
        r.prompt.insert(r.prompt.begin(), virtual_id(j));
    requests = behind_virtual_tokens;
  }
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const GenerationRequest& r = requests[i];
    const std::string which = requests.size() > 1 ? concat("prompt ", i + 1) : "the prompt";
    check_sampling(r.sampling);
    if (r.prompt.empty()) throw UsageError(concat("generate: ", which, " has no tokens"));
    const std::int64_t n = std::ssize(r.prompt);
    const std::int64_t most = settings_.capacity > 0
                                  ? std::min(settings_.capacity, model_.max_positions())
                                  : model_.max_positions();
    if (n >= most)
      throw UsageError(concat("generate: ", which, " has ", n, " tokens, the model takes ", most));
    if (!r.sampling.stop.empty() && !tokenizer_)
      throw UsageError("generate: stop texts need a tokenizer");
    longest = std::max(longest, std::min(most, n + r.sampling.max_tokens));
  }
  if (requests.empty()) return {};
  const std::int64_t capacity =
      settings_.capacity > 0 ? std::min(settings_.capacity, model_.max_positions()) : longest;
  const std::int64_t n_slots = std::min(settings_.max_batch, std::ssize(requests));
  if (!cache_ || cache_->capacity() < capacity || cache_->slots() < n_slots) {
    recorder_.clear();  // before the memory that recordings use is freed
    cache_.reset();
    slots_.clear();
    cache_ = std::make_unique<KvCache>(model_.backend(), model_.config(), model_.compute_dtype(),
                                       capacity, n_slots);
    slots_.resize(static_cast<std::size_t>(n_slots));
  }
  recorder_.forget_launched();
  Run run{*this, requests, events, std::vector<Generation>(requests.size()), {}, {}};
  for (std::size_t i = 0; i < requests.size(); ++i) run.waiting.push_back(i);
  run.go();
  return std::move(run.results);
}

Generation generate(Transformer& model, std::span<const std::int32_t> prompt,
                    const SamplingSettings& settings,
                    const std::function<bool(std::int32_t)>& on_token) {
  GenerationRequest request{{prompt.begin(), prompt.end()}, settings, -1};
  GenerationEvents events;
  if (on_token) events.on_token = [&](std::size_t, std::int32_t id) { return on_token(id); };
  return std::move(Generator(model, nullptr).run(std::span(&request, 1), events)[0]);
}

}  // namespace lk
