#include "nn/generate.h"

#include <algorithm>
#include <chrono>
#include <deque>

#include "nn/beam_search.h"
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
  KvCache& cache;
  std::span<const GenerationRequest> requests;
  const GenerationEvents& events;
  std::vector<Generation> results;
  std::deque<std::size_t> waiting;
  std::vector<Sequence> active;  // in the order in which slots are used: rows of a step
  HostLogits host = {};
  // A step whose tokens the device chooses: row j is of the sequence of request rows[j].
  struct Chosen {
    Decoder::Choice choice;
    std::vector<std::size_t> rows;
  };
  std::optional<Chosen> ahead = {};  // submitted before the host knew its inputs

  std::int64_t limit_of(const GenerationRequest& r) const {
    return std::min(r.sampling.max_tokens,
                    std::min(cache.capacity(), g.model().max_positions()) - std::ssize(r.prompt));
  }

  // Gives a waiting request a slot; with reuse_prefix, the slot that holds most of its beginning.
  void admit() {
    const std::size_t request = waiting.front();
    waiting.pop_front();
    const GenerationRequest& r = requests[request];
    std::int64_t best = -1;
    std::size_t best_common = 0;
    for (std::int64_t s = 0; s < cache.slots(); ++s) {
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
    cache.set_length(best, static_cast<std::int64_t>(best_common));
    results[request].reused = static_cast<std::int64_t>(best_common);
    Sequence s{request, best, limit_of(r), r.prompt, std::nullopt, Clock::now(), {}, false, false};
    if (g.tokenizer_) s.text.emplace(*g.tokenizer_, behind_virtual(r.prompt), r.sampling.stop);
    active.push_back(std::move(s));
  }

  // Takes the newly admitted prompts, active[first...], through the model, in pieces so that
  // activations stay bounded, and samples their first tokens.
  void prefill(std::size_t first) {
    const std::int64_t rows = g.decoder_.prefill_rows();
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
        const std::int64_t have = cache.length(s.slot), all = std::ssize(s.history);
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

  // Whether the most likely token of every sequence is wanted, which the device can choose.
  bool all_greedy() const {
    return std::all_of(active.begin(), active.end(), [&](const Sequence& s) {
      const SamplingSettings& sampling = requests[s.request].sampling;
      return sampling.temperature <= 0 && !adjusts(sampling);
    });
  }

  // Note [Steps ahead]: where a step is a recording, and the device chooses its tokens, the next step is
  // submitted before the host has read them: the device then works while the host writes text and
  // looks for stops. A sequence that turns out to have ended wasted its row of that step. What ends
  // by its length is known before, so no step is submitted for it.
  void decode_chosen(std::vector<SequencePart> parts) {
    std::optional<Chosen> now = std::move(ahead);
    ahead.reset();
    std::vector<std::size_t> rows;
    for (const Sequence& s : active) rows.push_back(s.request);
    if (!now) now = Chosen{g.submit_choosing(parts), rows};
    const bool more = std::all_of(active.begin(), active.end(), [&](const Sequence& s) {
      return std::ssize(results[s.request].ids) + 1 < s.limit;
    });
    if (more && now->rows == rows && g.decoder_.can_go_on())
      ahead = Chosen{g.decoder_.go_on(), rows};
    for (Sequence& s : active) {
      const auto row = std::find(now->rows.begin(), now->rows.end(), s.request);
      if (row == now->rows.end()) continue;  // admitted since the step was submitted
      const std::int32_t id = now->choice.id(static_cast<std::size_t>(row - now->rows.begin()));
      if (ahead) g.slots_[static_cast<std::size_t>(s.slot)].held.push_back(id);
      take(s, id);
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
    if (ahead || (g.decoder_.chooses() && all_greedy()))
      decode_chosen(std::move(parts));
    else
      sample(g.submit(parts), all);
  }

  // Row j of the logits belongs to active[which[j]], or to no sequence yet if that is SIZE_MAX.
  void sample(const Tensor& logits, const std::vector<std::size_t>& which) {
    if (std::all_of(which.begin(), which.end(), [](std::size_t i) { return i == SIZE_MAX; }))
      return;
    host.download(logits);
    std::vector<std::int32_t> ids(which.size());
    // A row has up to a quarter of a million numbers, so the threads share the rows of a batch.
    for_parts(std::ssize(which), 1, [&](std::int64_t j, std::int64_t) {
      const std::size_t i = which[static_cast<std::size_t>(j)];
      if (i == SIZE_MAX) return;
      const Sequence& s = active[i];
      ids[static_cast<std::size_t>(j)] =
          sample_token(host.row(j), requests[s.request].sampling, std::ssize(s.history), s.history);
    });
    for (std::size_t j = 0; j < which.size(); ++j)
      if (which[j] != SIZE_MAX) take(active[which[j]], ids[j]);
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
      while (!waiting.empty() && std::ssize(active) < cache.slots()) admit();
      if (active.size() > first) prefill(first);
      remove_done();
      if (!active.empty()) decode();
      remove_done();
    }
  }
};

Generator::Generator(Transformer& model, const Tokenizer* tokenizer,
                     const GeneratorSettings& settings)
    : decoder_(model, settings.prefill_rows, settings.record),
      tokenizer_(tokenizer),
      settings_(settings) {
  require(settings.max_batch > 0, "GeneratorSettings: max_batch ", settings.max_batch,
          ": must be at least 1");
  require(settings.capacity >= 0 && settings.prefill_rows >= 0, "GeneratorSettings: capacity ",
          settings.capacity, ", prefill_rows ", settings.prefill_rows, ": must not be negative");
}

Generator::~Generator() = default;

void Generator::forget() {
  for (Slot& slot : slots_) slot.held.clear();
}

// Submits a pass over the parts and notes what the slots then hold.
Tensor Generator::submit(std::span<const SequencePart> parts) {
  const Tensor logits = decoder_.submit(parts);
  hold(parts);
  return logits;
}

Decoder::Choice Generator::submit_choosing(std::span<const SequencePart> parts) {
  Decoder::Choice choice = decoder_.submit_choosing(parts);
  hold(parts);
  return choice;
}

void Generator::hold(std::span<const SequencePart> parts) {
  for (const SequencePart& p : parts) {
    std::vector<std::int32_t>& held = slots_[static_cast<std::size_t>(p.slot)].held;
    held.insert(held.end(), p.ids.begin(), p.ids.end());
  }
}

// The most tokens of a sequence with its prompt and virtual tokens.
std::int64_t Generator::most_tokens() const {
  return settings_.capacity > 0 ? std::min(settings_.capacity, model().max_positions())
                                : model().max_positions();
}

void Generator::check(std::span<const GenerationRequest> requests) const {
  std::int64_t variants = 0;
  model().visit_sites([&](const std::string&, std::size_t, Site, std::unique_ptr<LinearMap>& map) {
    variants = std::max(variants, map->variants());
  });
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const GenerationRequest& r = requests[i];
    const std::string which = requests.size() > 1 ? concat("prompt ", i + 1) : "the prompt";
    check_sampling(r.sampling);
    if (r.prompt.empty()) throw UsageError(concat("generate: ", which, " has no tokens"));
    const std::int64_t n = std::ssize(r.prompt) + model().virtual_tokens();
    if (n >= most_tokens())
      throw UsageError(
          concat("generate: ", which, " has ", n, " tokens, the model takes ", most_tokens()));
    if (!r.sampling.stop.empty() && !tokenizer_)
      throw UsageError("generate: stop texts need a tokenizer");
    for (std::int32_t id : r.prompt)
      require(id >= 0 && id < model().config().vocab_size, "generate: ", which, " has the token ",
              id, ", the model has 0 .. ", model().config().vocab_size - 1);
    require(r.variant >= -1 && r.variant < variants, "generate: ", which, " asks for variant ",
            r.variant, " of an adapter set of ", variants);
    require(r.sampling.beams == requests[0].sampling.beams,
            "generate: requests with different numbers of `beams` in one call");
  }
}

// Tokens of the longest sequence that may come of the requests, whose virtual tokens are there.
std::int64_t Generator::longest(std::span<const GenerationRequest> requests) const {
  std::int64_t longest = 0;
  for (const GenerationRequest& r : requests) {
    const std::int64_t n = std::ssize(r.prompt);
    longest = std::max(longest, n + std::min(most_tokens() - n, r.sampling.max_tokens));
  }
  return longest;
}

std::vector<Generation> Generator::run(std::span<const GenerationRequest> prompts,
                                       const GenerationEvents& events) {
  check(prompts);
  if (prompts.empty()) return {};
  require(!events.on_text || tokenizer_, "generate: on_text needs a tokenizer");
  std::vector<GenerationRequest> behind_virtual_tokens;
  std::span<const GenerationRequest> requests = prompts;
  if (const std::int64_t n = model().virtual_tokens(); n > 0) {
    behind_virtual_tokens.assign(prompts.begin(), prompts.end());
    for (GenerationRequest& r : behind_virtual_tokens)
      for (std::int64_t j = n; j-- > 0;) r.prompt.insert(r.prompt.begin(), virtual_id(j));
    requests = behind_virtual_tokens;
  }
  const std::int64_t most = most_tokens(), longest = this->longest(requests);
  const std::int64_t beams = requests[0].sampling.beams;
  const std::int64_t sequences =
      beams * std::clamp<std::int64_t>(settings_.max_batch / beams, 1, std::ssize(requests));
  require(sequences <= INT32_MAX / longest, "generate: `beams` ", beams, ": of ", longest,
          " tokens each they do not fit into one KV cache");
  if (settings_.reuse_prefix && decoder_.slots() >= sequences && decoder_.capacity() < longest)
    decoder_.grow(std::min(most, std::max(longest, 2 * decoder_.capacity())));
  else if (decoder_.reserve(sequences, longest))
    slots_.clear();
  slots_.resize(static_cast<std::size_t>(decoder_.cache().slots()));
  decoder_.begin();
  if (beams > 1) {
    forget();  // the slots are used for the beams
    return beam_search(decoder_, tokenizer_, requests, events);
  }
  Run run{*this, decoder_.cache(), requests, events, std::vector<Generation>(requests.size()), {},
          {}};
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
