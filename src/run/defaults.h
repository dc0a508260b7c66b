// What a run does where its settings leave it open. docs/defaults.md has the measurements.
#pragma once

#include <cstdint>

#include "io/json_fwd.h"
#include "run/finetune.h"

namespace lk {

// The share of the rows that is kept for evaluation if there are at least kRowsToSplit of them, and
// the most rows that takes.
inline constexpr double kEvalShare = 0.1;
inline constexpr std::int64_t kRowsToSplit = 48, kMostSplitRows = 256;

// The peak learning rate for A and B at scale alpha / rank = 1: 1.5e-3 sqrt(135 M / parameters), to
// two digits, within 2e-5 .. 3e-3. 2e-4 for 7 B. That a good rate falls with the root of the number
// of parameters is taken from Thinking Machines' tinker-cookbook (hyperparam_utils, 2025).
double default_lr(std::int64_t base_parameters);

// 16, or as much as the narrowest projection of the model allows.
std::int64_t default_rank(const ModelConfig& config);

// The longest row where the model has as many positions.
inline constexpr std::int64_t kMostTokens = 1024;

// Passes over the data: 3 up to 1,000 rows, 2 up to 5,000, else 1.
double default_epochs(std::int64_t rows);

// The share of the rows that a run evaluates on: the one asked for, or kEvalShare of enough rows in
// no particular order (with --no-shuffle the file is the recipe), or 0.
double eval_share(const FinetuneSettings& settings, std::int64_t rows);

// Fills in lr, schedule and warmup: a rate of one's own is constant unless a schedule is asked for;
// the default rate rises over a tenth of the steps (at most 50) and falls to 0. What an earlier part
// of the run (`before`, its identity, or null) decided stays, if it is left open now too. Throws
// InputError if it says nothing of them.
void fill_in_rates(FinetuneSettings& settings, std::int64_t base_parameters, std::int64_t steps,
                   const Json* before);

// How often a run evaluates, in steps, by default; 0: before and after it alone. Those after the first
// step are ten at most, five steps apart at least, and take an eighth of the training's time at most;
// up to a quarter, so that there are four of them and one for each epoch. By tokens and steps, never by
// the clock: a run's bytes must not depend on it.
std::int64_t default_eval_every(std::int64_t steps, double epochs, std::int64_t train_tokens,
                                std::int64_t eval_tokens);

// How often a run saves what it needs to go on, in steps: ten times, but neither more often than every 50
// steps nor less often than every 500, as transformers' Trainer does.
std::int64_t default_save_every(std::int64_t steps);

// Fills in eval_every, keep and samples.
void fill_in_evaluation(FinetuneSettings& settings, std::int64_t steps, double epochs,
                        std::int64_t train_tokens, std::int64_t eval_tokens);

// What in the settings looks like a mistake, a sentence each: a rate ten times off the default, too
// few steps, nothing to evaluate on.
std::vector<std::string> doubts(const FinetuneSettings& settings, std::int64_t base_parameters,
                                std::int64_t steps, bool evaluates);

}  // namespace lk
