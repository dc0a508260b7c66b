#include "run/samples.h"

#include <algorithm>

#include "nn/generate.h"

namespace lk {
namespace {

constexpr std::int64_t kLongestCut = 64;

// Disables the adapter as long as the object lives; enables it again whatever happens.
class Disabled {
 public:
  explicit Disabled(Method& method) : method_(method) { method_.set_enabled(false); }
  ~Disabled() { method_.set_enabled(true); }
  Disabled(const Disabled&) = delete;
  Disabled& operator=(const Disabled&) = delete;

 private:
  Method& method_;
};

}  // namespace

std::int64_t sample_prompt(const Row& row, std::int64_t positions) {
  const auto first = std::find(row.supervised.begin(), row.supervised.end(), 1);
  std::int64_t n = first - row.supervised.begin();
  if (n == 0) n = std::clamp<std::int64_t>(std::ssize(row.ids) / 4, 1, kLongestCut);
  return n < std::min(std::ssize(row.ids), positions) ? n : 0;
}

std::int64_t longest_sample_prompt(std::span<const Row> rows, std::int64_t n,
                                   std::int64_t positions) {
  std::int64_t longest = 0;
  for (const Row& row : rows) {
    const std::int64_t tokens = sample_prompt(row, positions);
    if (tokens == 0 || n-- <= 0) continue;
    longest = std::max(longest, tokens);
  }
  return longest;
}

std::vector<Sample> make_samples(Transformer& model, Method& method, const Tokenizer& tokenizer,
                                 std::span<const Row> rows, std::int64_t n, SampleKind kind,
                                 const std::function<bool()>& stopped) {
  SamplingSettings sampling;
  sampling.max_tokens = kSampleTokens;
  sampling.stop_ids = tokenizer.stop_ids();
  std::vector<Sample> samples;
  std::vector<std::span<const std::int32_t>> prompts;
  for (const Row& row : rows) {
    if (std::ssize(samples) >= n) break;
    const auto begin = static_cast<std::size_t>(sample_prompt(row, model.max_positions()));
    if (begin == 0) continue;
    const auto last = std::find(row.supervised.begin() + static_cast<std::ptrdiff_t>(begin),
                                row.supervised.end(), 0);
    const auto end = static_cast<std::size_t>(last - row.supervised.begin());
    const std::span<const std::int32_t> ids = row.ids;
    prompts.push_back(ids.first(begin));
    samples.push_back({tokenizer.decode(prompts.back(), false),
                       tokenizer.decode_after(prompts.back(), ids.subspan(begin, end - begin)), "",
                       ""});
  }
  auto write = [&](std::size_t i) {
    const auto go_on = [&](std::int32_t) { return !stopped || !stopped(); };
    return go_on(0) ? tokenizer.decode(generate(model, prompts[i], sampling, go_on).ids) : "";
  };
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i].adapted = write(i);
  if (kind == SampleKind::Both) {
    const Disabled base(method);
    for (std::size_t i = 0; i < samples.size(); ++i) samples[i].base = write(i);
  }
  if (stopped && stopped()) return {};
  return samples;
}

}  // namespace lk
