#include "run/shared_inference.h"

#include <algorithm>
#include <cstring>

#include "nn/evaluation.h"
#include "run/shared_run.h"

namespace lk {
namespace {

constexpr std::int64_t kProbeTokens = 16;

// What a Generation has beside its tokens and its text.
struct Figures {
  std::uint64_t ids = 0, text = 0;  // their lengths
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t reused = 0, stopped = 0;
};

void append(std::string& message, const void* data, std::size_t bytes) {
  message.append(static_cast<const char*>(data), bytes);
}

// Generated text may hold any bytes, so a message is no JSON.
void append(std::string& message, const Generation& g) {
  const Figures figures{g.ids.size(),     g.text.size(), g.prefill_seconds,
                        g.decode_seconds, g.reused,      g.stopped};
  append(message, &figures, sizeof figures);
  append(message, g.ids.data(), g.ids.size() * sizeof g.ids[0]);
  append(message, g.text.data(), g.text.size());
}

void take(std::string_view& message, void* to, std::size_t bytes) {
  check(bytes <= message.size(), "generate_shared: a message ends in a result");
  if (bytes > 0) std::memcpy(to, message.data(), bytes);
  message.remove_prefix(bytes);
}

Generation take_generation(std::string_view& message) {
  Figures figures;
  take(message, &figures, sizeof figures);
  check(figures.ids <= message.size() / sizeof(std::int32_t) && figures.text <= message.size(),
        "generate_shared: a result is longer than its message");
  Generation g;
  g.ids.resize(figures.ids);
  take(message, g.ids.data(), figures.ids * sizeof g.ids[0]);
  g.text.resize(figures.text);
  take(message, g.text.data(), figures.text);
  g.prefill_seconds = figures.prefill_seconds, g.decode_seconds = figures.decode_seconds;
  g.reused = figures.reused, g.stopped = figures.stopped != 0;
  return g;
}

double probe_loss(Transformer& model) {
  Row row;
  const std::int64_t n = std::min(kProbeTokens, model.max_positions() - model.virtual_tokens());
  for (std::int64_t i = 0; i < n; ++i)
    row.ids.push_back(static_cast<std::int32_t>(i * 9973 % model.config().vocab_size));
  row.supervised.assign(row.ids.size(), 1);
  return evaluate(model, std::span(&row, 1), n).loss;
}

}  // namespace

std::int64_t generation_groups(std::int64_t prompts, std::int64_t beams, std::int64_t max_batch) {
  const std::int64_t most = std::max<std::int64_t>(1, max_batch / beams);
  return (prompts + most - 1) / most;
}

std::vector<Generation> generate_shared(
    World& world, Generator& generator, std::span<const GenerationRequest> requests,
    const std::function<void(std::size_t, const Generation&)>& on_done) {
  generator.check(requests);
  std::vector<Generation> results;
  if (requests.empty()) return results;
  results.reserve(requests.size());
  const std::int64_t n = std::ssize(requests);
  const std::int64_t groups =
      generation_groups(n, requests[0].sampling.beams, generator.max_batch());
  auto begin = [&](std::int64_t group) { return static_cast<std::size_t>(n * group / groups); };
  for (std::int64_t round = 0; round < groups; round += world.size()) {
    std::string message;
    if (const std::int64_t own = round + world.rank(); own < groups)
      for (const Generation& g :
           generator.run(requests.subspan(begin(own), begin(own + 1) - begin(own))))
        append(message, g);
    const std::vector<std::string> all =
        world.size() > 1 ? world.gather(message) : std::vector<std::string>{message};
    for (std::string_view rest : all)
      while (!rest.empty()) results.push_back(take_generation(rest));
    for (auto i = begin(round); on_done && i < results.size(); ++i) on_done(i, results[i]);
  }
  check(results.size() == requests.size(), "generate_shared: ", results.size(), " results of ",
        requests.size(), " prompts");
  return results;
}

void require_same_inference(World& world, Transformer& model, const Json& settings) {
  if (world.size() == 1) return;
  require_same(world, {{"settings", settings}, {"loss of a few tokens", probe_loss(model)}});
}

}  // namespace lk
