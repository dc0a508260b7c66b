#include "nn/beam_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <list>

#include "tensor/parts.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;
using Ids = std::vector<std::int32_t>;

struct Beam {
  std::int64_t slot = 0;  // of the cache; holds all of `text` but the last token
  Ids text;               // prompt and new tokens
  double score = 0;       // sum of the new tokens' log-probabilities
};

struct Finished {
  Ids ids;           // new tokens, without a stop token
  double score = 0;  // divided by length^length_penalty
  bool stopped = false;
};

// A token that may follow a beam, and the score of the longer text.
struct Extension {
  std::size_t beam = 0;
  std::int32_t id = 0;
  double score = 0;
};

bool better(const Extension& a, const Extension& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.beam != b.beam ? a.beam < b.beam : a.id < b.id;
}

std::int64_t equal_start(const Ids& a, const Ids& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

// x - log sum exp(x) for each logit. Throws NonFiniteError.
std::vector<float> log_softmax(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - largest);
  if (!std::isfinite(largest) || !std::isfinite(sum))
    throw NonFiniteError("generate: the logits are not finite");
  const double lse = static_cast<double>(largest) + std::log(sum);
  std::vector<float> out(logits.size());
  std::transform(logits.begin(), logits.end(), out.begin(),
                 [&](float x) { return static_cast<float>(x - lse); });
  return out;
}

// The search for one request.
class Search {
 public:
  Search(std::size_t request, const GenerationRequest& r, std::vector<std::int64_t> slots,
         std::int64_t limit)
      : request_(request),
        settings_(r.sampling),
        variant_(r.variant),
        limit_(limit),
        n_prompt_(r.prompt.size()),
        slots_(std::move(slots)),
        held_(slots_.size()) {
    beams_.push_back({slots_[0], r.prompt, 0});
    // As many tokens of a beam end a text as there are stop tokens, so that many beams remain.
    n_extensions_ = slots_.size() * std::max<std::size_t>(2, 1 + settings_.stop_ids.size());
  }

  std::size_t request() const { return request_; }
  const std::vector<std::int64_t>& slots() const { return slots_; }
  const std::vector<Beam>& beams() const { return beams_; }
  std::int32_t variant() const { return variant_; }
  bool done() const { return done_; }
  const Finished& best() const { return finished_.front(); }

  // The best extensions of a beam, given the logits after it. Any thread may ask.
  std::vector<Extension> extend(std::size_t beam, std::span<const float> logits) const {
    const Beam& from = beams_[beam];
    std::vector<float> scores = log_softmax(logits);
    if (adjusts(settings_)) adjust_scores(scores, settings_, from.text);
    std::vector<Extension> best;  // a heap with the worst on top
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (!(scores[i] > -INFINITY)) continue;
      const Extension e{beam, static_cast<std::int32_t>(i), from.score + scores[i]};
      const bool full = best.size() == n_extensions_;
      if (full && !better(e, best.front())) continue;
      if (full) std::pop_heap(best.begin(), best.end(), better), best.pop_back();
      best.push_back(e);
      std::push_heap(best.begin(), best.end(), better);
    }
    return best;
  }

  // Goes one token on, given the best extensions of all beams.
  void step(std::vector<Extension> all, Decoder& decoder) {
    std::sort(all.begin(), all.end(), better);
    if (all.size() > n_extensions_) all.resize(n_extensions_);
    ++length_;
    std::vector<Extension> next;
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      const bool stop = is_stop(all[rank].id);
      if (!stop && length_ < limit_) {
        if (next.size() < slots_.size()) next.push_back(all[rank]);
      } else if (rank < slots_.size()) {
        finish(all[rank], stop);
      }
    }
    done_ = next.empty() ||
            (finished_.size() == slots_.size() && normal(next[0].score) <= finished_.back().score);
    if (done_ && finished_.empty()) finish_unextended();
    if (!done_) go_on(next, decoder);
  }

 private:
  bool is_stop(std::int32_t id) const {
    const auto& ids = settings_.stop_ids;
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  }
  double normal(double score) const {
    return score / std::pow(static_cast<double>(length_), settings_.length_penalty);
  }

  void finish(const Extension& e, bool stop) {
    const Ids& text = beams_[e.beam].text;
    Finished f{
        {text.begin() + static_cast<std::ptrdiff_t>(n_prompt_), text.end()}, normal(e.score), stop};
    if (!stop) f.ids.push_back(e.id);
    const auto behind =
        std::upper_bound(finished_.begin(), finished_.end(), f,
                         [](const Finished& a, const Finished& b) { return a.score > b.score; });
    finished_.insert(behind, std::move(f));
    if (finished_.size() > slots_.size()) finished_.pop_back();
  }

  // Makes the next beams: the first extension of a beam keeps its slot, others get free ones.
  void go_on(const std::vector<Extension>& next, Decoder& decoder) {
    std::vector<Beam> beams(next.size());
    std::vector<bool> kept(beams_.size(), false), taken(slots_.size(), false);
    for (std::size_t i = 0; i < slots_.size(); ++i)
      for (const Beam& b : beams_)
        if (b.slot == slots_[i]) held_[i] = b.text;
    for (std::size_t i = 0; i < next.size(); ++i) {
      const Beam& from = beams_[next[i].beam];
      beams[i] = {-1, from.text, next[i].score};
      beams[i].text.push_back(next[i].id);
      if (kept[next[i].beam]) continue;
      kept[next[i].beam] = true;
      beams[i].slot = from.slot;
      taken[place_of(from.slot)] = true;
    }
    for (std::size_t i = 0; i < next.size(); ++i) {
      if (beams[i].slot >= 0) continue;
      const Beam& from = beams_[next[i].beam];
      std::size_t to = slots_.size();
      std::int64_t most = -1;
      for (std::size_t s = 0; s < slots_.size(); ++s)
        if (!taken[s] && equal_start(held_[s], from.text) > most)
          to = s, most = equal_start(held_[s], from.text);
      taken[to] = true;
      decoder.copy_slot(slots_[to], from.slot, most, std::ssize(from.text));
      held_[to] = from.text;
      beams[i].slot = slots_[to];
    }
    beams_ = std::move(beams);
  }

  std::size_t place_of(std::int64_t slot) const {
    return static_cast<std::size_t>(std::find(slots_.begin(), slots_.end(), slot) - slots_.begin());
  }

  // Every token of every beam was ruled out: the best beam ends as it is.
  void finish_unextended() {
    const Ids& text = beams_[0].text;
    finished_.push_back({{text.begin() + static_cast<std::ptrdiff_t>(n_prompt_), text.end()},
                         beams_[0].score,
                         false});
  }

  std::size_t request_;
  const SamplingSettings& settings_;
  std::int32_t variant_;
  std::int64_t limit_, length_ = 0;  // of new tokens; so far
  std::size_t n_prompt_, n_extensions_ = 0;
  std::vector<std::int64_t> slots_;
  std::vector<Ids> held_;           // tokens whose keys and values each slot has
  std::vector<Beam> beams_;         // the best first
  std::vector<Finished> finished_;  // the best first
  bool done_ = false;
};

// The searches of one call, several at a time.
class Searches {
 public:
  Searches(Decoder& decoder, const Tokenizer* tokenizer,
           std::span<const GenerationRequest> requests, const GenerationEvents& events)
      : decoder_(decoder),
        tokenizer_(tokenizer),
        requests_(requests),
        events_(events),
        results_(requests.size()),
        begun_(requests.size()) {}

  std::vector<Generation> go() {
    const std::int64_t beams = requests_[0].sampling.beams;
    std::deque<std::vector<std::int64_t>> free;  // slots for one search each
    for (std::int64_t first = 0; first + beams <= decoder_.cache().slots(); first += beams) {
      free.emplace_back();
      for (std::int64_t s = first; s < first + beams; ++s) free.back().push_back(s);
    }
    std::size_t waiting = 0;
    while (waiting < requests_.size() || !active_.empty()) {
      for (; waiting < requests_.size() && !free.empty(); ++waiting) {
        begin(waiting, std::move(free.front()));
        free.pop_front();
      }
      decode();
      std::erase_if(active_, [&](const Search& s) {
        if (s.done()) free.push_back(s.slots());
        return s.done();
      });
    }
    return std::move(results_);
  }

 private:
  // Computes a prompt, in pieces so that activations stay bounded, and its first step.
  void begin(std::size_t request, std::vector<std::int64_t> slots) {
    const GenerationRequest& r = requests_[request];
    begun_[request] = Clock::now();
    const std::int64_t n = std::ssize(r.prompt), rows = decoder_.prefill_rows();
    const std::int64_t most =
        std::min(decoder_.cache().capacity(), decoder_.model().max_positions());
    for (std::int64_t slot : slots) decoder_.cache().set_length(slot, 0);
    Tensor logits;
    for (std::int64_t have = 0; have < n;) {
      const std::int64_t end = std::min(n, (have / rows + 1) * rows);
      const SequencePart part{
          slots[0], {r.prompt.begin() + have, r.prompt.begin() + end}, r.variant};
      logits = decoder_.submit(std::span(&part, 1));
      have = end;
    }
    active_.emplace_back(request, r, std::move(slots), std::min(r.sampling.max_tokens, most - n));
    results_[request].prefill_seconds = seconds_since(begun_[request]);
    host_.download(logits);
    take(active_.back(), 0);
  }

  void decode() {
    std::vector<SequencePart> parts;
    for (const Search& s : active_)
      if (!s.done())
        for (const Beam& b : s.beams()) parts.push_back({b.slot, {b.text.back()}, s.variant()});
    if (parts.empty()) return;
    host_.download(decoder_.submit(parts));
    std::int64_t row = 0;
    for (Search& s : active_) {
      if (s.done()) continue;
      const std::int64_t n = std::ssize(s.beams());
      take(s, row);
      row += n;
    }
  }

  // Goes on with a search, whose beams have the logits from `row` on.
  void take(Search& s, std::int64_t row) {
    std::vector<std::vector<Extension>> each(s.beams().size());
    for_parts(std::ssize(each), 1, [&](std::int64_t i, std::int64_t) {
      const auto at = static_cast<std::size_t>(i);
      each[at] = s.extend(at, host_.row(row + i));
    });
    std::vector<Extension> all;
    for (const auto& one : each) all.insert(all.end(), one.begin(), one.end());
    s.step(std::move(all), decoder_);
    if (s.done()) report(s);
  }

  void report(const Search& s) {
    const std::size_t request = s.request();
    Generation& result = results_[request];
    result.ids = s.best().ids;
    result.stopped = s.best().stopped;
    result.decode_seconds = seconds_since(begun_[request]) - result.prefill_seconds;
    if (events_.on_token)
      for (std::int32_t id : result.ids) events_.on_token(request, id);
    if (tokenizer_) {
      TextStream text(*tokenizer_, behind_virtual(requests_[request].prompt), {});
      for (std::int32_t id : result.ids) result.text += text.push(id);
      result.text += text.finish();
      if (events_.on_text && !result.text.empty()) events_.on_text(request, result.text);
    }
    if (events_.on_done) events_.on_done(request, result);
  }

  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Decoder& decoder_;
  const Tokenizer* tokenizer_;
  std::span<const GenerationRequest> requests_;
  const GenerationEvents& events_;
  std::vector<Generation> results_;
  std::vector<Clock::time_point> begun_;  // of each request
  std::list<Search> active_;
  HostLogits host_;
};

}  // namespace

std::vector<Generation> beam_search(Decoder& decoder, const Tokenizer* tokenizer,
                                    std::span<const GenerationRequest> requests,
                                    const GenerationEvents& events) {
  const std::int64_t beams = requests[0].sampling.beams, V = decoder.model().config().vocab_size;
  for (const GenerationRequest& r : requests) {
    const auto ends =
        static_cast<std::int64_t>(std::max<std::size_t>(1, r.sampling.stop_ids.size()));
    require(beams <= V / (1 + ends), "`beams` ", beams, ": more than the model's ", V,
            " tokens allow, ", V / (1 + ends));
  }
  return Searches(decoder, tokenizer, requests, events).go();
}

}  // namespace lk
