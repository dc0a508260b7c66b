#include "nn/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace lk {

std::int32_t sample_token(std::span<const float> logits, const SamplingSettings& settings,
                          std::int64_t position) {
  check(!logits.empty(), "sample_token: no logits");
  auto best = std::max_element(logits.begin(), logits.end(), [](float a, float b) {
    return std::isnan(b) ? false : std::isnan(a) || a < b;
  });
  if (!std::isfinite(*best)) throw NonFiniteError("generate: the logits are not finite");
  if (settings.temperature <= 0) return static_cast<std::int32_t>(best - logits.begin());

  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::size_t keep = order.size();
  if (settings.top_k > 0) keep = std::min(keep, static_cast<std::size_t>(settings.top_k));
  auto larger = [&](std::int32_t a, std::int32_t b) {
    float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(keep), order.end(),
                    larger);
  order.resize(keep);
  std::vector<double> p(keep);
  double sum = 0;
  for (std::size_t i = 0; i < keep; ++i) {
    double z = (static_cast<double>(logits[static_cast<std::size_t>(order[i])]) - *best) /
               settings.temperature;
    sum += p[i] = std::exp(z);
  }
  double kept = 0;
  std::size_t n = 0;
  while (n < keep && (n == 0 || kept < settings.top_p * sum)) kept += p[n++];
  // 48 random bits are enough for any vocabulary.
  Philox4 draw = philox_quad({settings.seed, static_cast<std::uint64_t>(position), 0x5eed}, 0);
  double u =
      (static_cast<double>(draw.v[0]) * 65536.0 + (draw.v[1] >> 16)) / 281474976710656.0 * kept;
  for (std::size_t i = 0; i < n; ++i) {
    if (u < p[i]) return order[i];
    u -= p[i];
  }
  return order[n - 1];
}

Generation generate(Transformer& model, std::span<const std::int32_t> prompt,
                    const SamplingSettings& settings,
                    const std::function<bool(std::int32_t)>& on_token) {
  using Clock = std::chrono::steady_clock;
  if (prompt.empty()) throw UsageError("generate: the prompt has no tokens");
  const std::int64_t n_prompt = static_cast<std::int64_t>(prompt.size());
  const std::int64_t room = model.max_positions() - n_prompt;
  if (room < 1)
    throw UsageError(concat("generate: the prompt has ", n_prompt, " tokens, the model takes ",
                            model.max_positions()));
  const std::int64_t limit = std::min(settings.max_tokens, room);
  KvCache cache(model.backend(), model.config(), model.compute_dtype(), n_prompt + limit);
  Generation result;
  std::vector<std::int32_t> input(prompt.begin(), prompt.end());
  std::vector<float> logits;
  auto start = Clock::now();
  auto lap = [&] {
    auto now = Clock::now();
    double s = std::chrono::duration<double>(now - start).count();
    start = now;
    return s;
  };
  while (static_cast<std::int64_t>(result.ids.size()) < limit) {
    const std::int64_t position = cache.length();
    Tensor row = model.next_logits(make_prompt(model.backend(), input, position), cache);
    std::vector<double> raw = to_host_f64(row);
    logits.assign(raw.begin(), raw.end());
    (position == 0 ? result.prefill_seconds : result.decode_seconds) += lap();
    std::int32_t id = sample_token(logits, settings, cache.length());
    if (std::find(settings.stop_ids.begin(), settings.stop_ids.end(), id) !=
        settings.stop_ids.end()) {
      result.stopped = true;
      break;
    }
    result.ids.push_back(id);
    if (on_token && !on_token(id)) break;
    input = {id};
  }
  return result;
}

}  // namespace lk
