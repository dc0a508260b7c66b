#include "run/defaults.h"

#include <algorithm>
#include <cmath>

#include "io/checked.h"
#include "io/json.h"
#include "run/methods.h"

namespace lk {
namespace {

constexpr std::int64_t kRank = 16, kMostWarmup = 50, kFewSteps = 10;
constexpr std::int64_t kMostEvaluations = 10, kFewEvaluations = 4, kStepsApart = 5;

double two_digits(double x) {
  const double unit = std::pow(10, std::floor(std::log10(x)) - 1);
  return std::round(x / unit) * unit;
}

}  // namespace

double default_lr(std::int64_t base_parameters) {
  const double n = static_cast<double>(std::max<std::int64_t>(base_parameters, 1));
  return two_digits(std::clamp(1.5e-3 * std::sqrt(135e6 / n), 2e-5, 3e-3));
}

std::int64_t default_rank(const ModelConfig& c) {
  const std::int64_t heads = std::min(c.n_heads, c.n_kv_heads) * c.head_dim;
  return std::max<std::int64_t>(1, std::min({kRank, c.hidden_size, c.intermediate_size, heads}));
}

double default_epochs(std::int64_t rows) { return rows <= 1000 ? 3 : rows <= 5000 ? 2 : 1; }

double eval_share(const FinetuneSettings& s, std::int64_t rows) {
  if (!s.eval_data.empty()) return 0;
  if (s.eval_split) return *s.eval_split;
  return s.shuffle && rows >= kRowsToSplit ? kEvalShare : 0;
}

void fill_in_rates(FinetuneSettings& s, std::int64_t base_parameters, std::int64_t steps,
                   const Json* before) {
  const bool own_rate = s.lr.has_value();
  if (before) {
    const std::string where = "the checkpoint's identity";
    if (!s.lr) s.lr = json_number(*before, "lr", where);
    if (!s.schedule) s.schedule = json_string(*before, "schedule", where);
    if (!s.warmup) s.warmup = json_int(*before, "warmup", 0, INT64_MAX, where);
  }
  if (!s.lr) s.lr = two_digits(rate_of(s.methods) * default_lr(base_parameters));
  if (!s.schedule) s.schedule = own_rate ? "constant" : "linear";
  if (!s.warmup) s.warmup = own_rate ? 0 : std::min(steps / 10, kMostWarmup);
}

std::int64_t default_eval_every(std::int64_t steps, double epochs, std::int64_t train_tokens,
                                std::int64_t eval_tokens) {
  if (eval_tokens <= 0) return 0;
  // Evaluations that take 1/part of the training's time: a token takes a third of the work that
  // training on it takes.
  auto within = [&](std::int64_t part) { return 3 * train_tokens / (part * eval_tokens); };
  const std::int64_t room = steps / kStepsApart,
                     passes = to_integer(std::ceil(epochs), 1, steps).value_or(1);
  const std::int64_t wanted = std::min({within(8), kMostEvaluations, room}),
                     least = std::min({within(4), std::max(passes, kFewEvaluations), room}),
                     n = std::max(wanted, least);
  return n > 1 ? (steps + n - 1) / n : 0;
}

std::int64_t default_save_every(std::int64_t steps) {
  return std::clamp<std::int64_t>(steps / 10, 50, 500);
}

void fill_in_evaluation(FinetuneSettings& s, std::int64_t steps, double epochs,
                        std::int64_t train_tokens, std::int64_t eval_tokens) {
  const bool evaluates = eval_tokens > 0;
  if (!s.eval_every) s.eval_every = default_eval_every(steps, epochs, train_tokens, eval_tokens);
  if (s.keep == "auto") s.keep = evaluates ? "best" : "last";
  if (!s.samples) s.samples = evaluates ? 3 : 0;
}

std::vector<std::string> doubts(const FinetuneSettings& s, std::int64_t base_parameters,
                                std::int64_t steps, bool evaluates) {
  std::vector<std::string> all;
  const double usual = two_digits(rate_of(s.methods) * default_lr(base_parameters));
  if (*s.lr > 10 * usual || *s.lr * 10 < usual)
    all.push_back(concat("warning: lr ", *s.lr, " is far from the usual ", usual,
                         " for a model of this size: the run may ",
                         *s.lr > usual ? "diverge" : "learn next to nothing"));
  if (steps < kFewSteps)
    all.push_back(concat("warning: ", steps, steps == 1 ? " step is" : " steps are",
                         " few: a style takes some twenty to learn"));
  if (!evaluates)
    all.push_back(
        "warning: nothing to evaluate on: that the loss on new rows falls will not show; "
        "`eval_data` or `eval_split` give it");
  return all;
}

}  // namespace lk
