#include "nn/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/error.h"
#include "tensor/philox.h"

namespace lk {
namespace {

void penalise(std::vector<float>& scores, double penalty, std::span<const std::int32_t> history) {
  std::vector<bool> done(scores.size());
  for (std::int32_t id : history) {
    const auto i = static_cast<std::size_t>(id);
    if (id < 0 || i >= scores.size() || done[i]) continue;
    done[i] = true;
    const double x = scores[i];
    scores[i] = static_cast<float>(x > 0 ? x / penalty : x * penalty);
  }
}

// The scores of tokens that would complete an n-gram of `history` once more become -inf.
void ban_repetitions(std::vector<float>& scores, std::int64_t n,
                     std::span<const std::int32_t> history) {
  const auto size = static_cast<std::size_t>(n);
  if (history.size() < size) return;
  const std::span<const std::int32_t> now = history.last(size - 1);
  std::vector<float> banned = scores;
  for (std::size_t i = 0; i + size <= history.size(); ++i) {
    const auto id = static_cast<std::size_t>(history[i + size - 1]);
    if (id < scores.size() &&
        std::equal(now.begin(), now.end(), history.begin() + static_cast<std::ptrdiff_t>(i)))
      banned[id] = -INFINITY;
  }
  const bool some =
      std::any_of(banned.begin(), banned.end(), [](float x) { return x > -INFINITY; });
  if (some) scores = std::move(banned);
}

// Index of the first of the largest scores; NaN counts as smaller than anything. The maximum is
// kept in several lanes, so that a vocabulary takes microseconds: with 16 rows per step, a plain
// loop took longer than the GPU.
std::size_t largest(std::span<const float> scores) {
  constexpr std::size_t kLanes = 16;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -INFINITY);
  std::size_t i = 0;
  for (; i + kLanes <= scores.size(); i += kLanes)
    for (std::size_t j = 0; j < kLanes; ++j)
      lanes[j] = scores[i + j] > lanes[j] ? scores[i + j] : lanes[j];
  float best = *std::max_element(lanes, lanes + kLanes);
  for (; i < scores.size(); ++i) best = scores[i] > best ? scores[i] : best;
  if (!std::isfinite(best)) throw NonFiniteError("generate: the logits are not finite");
  return static_cast<std::size_t>(std::find(scores.begin(), scores.end(), best) - scores.begin());
}

// The tokens that a draw chooses from, the most likely first where the settings need an order.
struct Candidates {
  std::vector<std::int32_t> ids;
  std::vector<double> weights;  // up to a common factor; the largest of all tokens has 1
};

Candidates weigh(std::span<const float> scores, float best, double temperature) {
  Candidates c;
  c.ids.resize(scores.size());
  std::iota(c.ids.begin(), c.ids.end(), 0);
  c.weights.reserve(scores.size());
  for (float x : scores)
    c.weights.push_back(std::isnan(x) ? 0
                                      : std::exp((static_cast<double>(x) - best) / temperature));
  return c;
}

// Moves the n largest to the front, in order; equal ones are ordered by id.
void order(Candidates& c, std::size_t n) {
  std::vector<std::int32_t> ids = std::move(c.ids);
  auto larger = [&](std::int32_t a, std::int32_t b) {
    const double x = c.weights[static_cast<std::size_t>(a)];
    const double y = c.weights[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto end = ids.begin() + static_cast<std::ptrdiff_t>(n);
  if (n < ids.size()) std::nth_element(ids.begin(), end, ids.end(), larger);
  std::sort(ids.begin(), end, larger);
  ids.resize(n);
  std::vector<double> weights;
  for (std::int32_t id : ids) weights.push_back(c.weights[static_cast<std::size_t>(id)]);
  c = {std::move(ids), std::move(weights)};
}

void truncate(Candidates& c, std::size_t n) { c.ids.resize(n), c.weights.resize(n); }

// Keeps the first candidates (which are in order) whose weights reach `goal` together, at least
// one. Returns false if all of them together do not reach it.
bool reach(Candidates& c, double goal) {
  double sum = 0;
  for (std::size_t i = 0; i < c.weights.size(); ++i) {
    sum += c.weights[i];
    if (sum < goal) continue;
    truncate(c, i + 1);
    return true;
  }
  return false;
}

Candidates choose(std::span<const float> scores, float best, const SamplingSettings& s) {
  Candidates c = weigh(scores, best, s.temperature);
  if (s.top_k > 0) order(c, std::min(c.ids.size(), static_cast<std::size_t>(s.top_k)));
  if (s.top_p < 1) {
    const double goal = s.top_p * std::accumulate(c.weights.begin(), c.weights.end(), 0.0);
    if (s.top_k > 0) {
      reach(c, goal);
    } else {  // the nucleus is usually small: sorting the vocabulary would take longer than a
              // step
      const Candidates all = c;
      for (std::size_t n = 256;; n *= 8) {
        n = std::min(n, all.ids.size());
        c = all;
        order(c, n);
        if (reach(c, goal) || n == all.ids.size()) break;
      }
    }
  }
  if (s.min_p > 0) {
    Candidates kept;
    for (std::size_t i = 0; i < c.ids.size(); ++i) {
      if (c.weights[i] < s.min_p) continue;
      kept.ids.push_back(c.ids[i]);
      kept.weights.push_back(c.weights[i]);
    }
    c = std::move(kept);
  }
  return c;
}

}  // namespace

void check_sampling(const SamplingSettings& s) {
  if (s.max_tokens < 1) throw UsageError("`max_tokens` must be at least 1");
  if (!(s.temperature >= 0 && std::isfinite(s.temperature)))
    throw UsageError("`temperature` must not be negative");
  if (s.top_k < 0) throw UsageError("`top_k` must not be negative");
  if (!(s.top_p > 0 && s.top_p <= 1)) throw UsageError("`top_p` must lie in (0, 1]");
  if (!(s.min_p >= 0 && s.min_p <= 1)) throw UsageError("`min_p` must lie in [0, 1]");
  if (!(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty)))
    throw UsageError("`repetition_penalty` must be larger than 0");
  for (const std::string& text : s.stop)
    if (text.empty()) throw UsageError("`stop` must not be empty");
  if (s.no_repeat_ngram < 0) throw UsageError("`no_repeat_ngram` must not be negative");
  if (s.beams < 1) throw UsageError("`beams` must be at least 1");
  if (!std::isfinite(s.length_penalty)) throw UsageError("`length_penalty` must be finite");
  if (s.beams == 1 && s.length_penalty != 1)
    throw UsageError("`length_penalty` is for `beams` 2 or more");
  if (s.beams > 1 && (s.temperature > 0 || s.top_k > 0 || s.top_p < 1 || s.min_p > 0))
    throw UsageError(
        "`beams` looks for the most likely text: no `temperature`, `top_k`, `top_p` or `min_p`");
  if (s.beams > 1 && !s.stop.empty())
    throw UsageError("`beams` compares whole texts: no `stop`, which ends one as it is written");
}

bool adjusts(const SamplingSettings& settings) {
  return settings.repetition_penalty != 1 || settings.no_repeat_ngram > 0;
}

void adjust_scores(std::vector<float>& scores, const SamplingSettings& settings,
                   std::span<const std::int32_t> history) {
  if (settings.repetition_penalty != 1) penalise(scores, settings.repetition_penalty, history);
  if (settings.no_repeat_ngram > 0) ban_repetitions(scores, settings.no_repeat_ngram, history);
}

std::int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings,
                          std::int64_t position, std::span<const std::int32_t> history) {
  require(!logits.empty(), "sample_token: no logits");
  std::vector<float> adjusted;
  if (adjusts(settings)) {
    adjusted.assign(logits.begin(), logits.end());
    adjust_scores(adjusted, settings, history);
    logits = adjusted;
  }
  const std::size_t best = largest(logits);
  if (settings.temperature <= 0) return static_cast<std::int32_t>(best);
  const Candidates c = choose(logits, logits[best], settings);
  // 48 random bits are enough for any vocabulary.
  const Philox4 draw = philox_at({settings.seed, static_cast<std::uint64_t>(position), 0x5eed}, 0);
  double u = (static_cast<double>(draw.v[0]) * 65536.0 + (draw.v[1] >> 16)) / 281474976710656.0 *
             std::accumulate(c.weights.begin(), c.weights.end(), 0.0);
  for (std::size_t i = 0; i < c.ids.size(); ++i) {
    if (u < c.weights[i]) return c.ids[i];
    u -= c.weights[i];
  }
  // Rounding let u pass the end: choose the last candidate with a positive weight.
  for (std::size_t i = c.ids.size(); i-- > 0;)
    if (c.weights[i] > 0) return c.ids[i];
  return static_cast<std::int32_t>(best);
}

}  // namespace lk
