// EvaluationWatch: what the evaluations of a run say: which adapter to keep, when to stop, and what
// to warn of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "nn/evaluation.h"
#include "nn/method.h"
#include "run/run_progress.h"

namespace lk {

// Of the evaluation loss before training: what is above that is no lesson.
inline constexpr double kTaught = 0.98;

class EvaluationWatch {
 public:
  // `patience`: how many evaluations in a row may pass without a new lowest one; 0: any number.
  // `progress` holds what a checkpoint must: the lowest evaluation and how long ago it was.
  EvaluationWatch(bool keep_best, std::int64_t patience, RunProgress& progress)
      : keep_best_(keep_best), patience_(patience), progress_(progress) {}

  // Hears of an evaluation after `step` steps and of the training loss since the last one. The
  // lowest evaluation after step 0 has its adapter copied, to host memory. Returns what a user
  // should know, or nothing.
  std::string evaluated(std::int64_t step, const Evaluation& e, double training_loss,
                        const Method& method);
  bool is_out_of_patience() const {
    return patience_ > 0 && progress_.evaluations_since_best >= patience_;
  }

  // Calls f with the numbers to keep in the adapter: those of the lowest evaluation if there is one
  // and it is wanted, else the present ones, which are back afterwards.
  void with_kept(Method& method, const std::function<void()>& f) const;

  // A and B of the lowest evaluation, parameter by parameter; empty if none is kept.
  const std::vector<std::vector<float>>& kept() const { return kept_; }
  // Takes over what a checkpoint has of them, if the best adapter is wanted.
  void restore_kept(std::vector<std::vector<float>> values) {
    if (keep_best_) kept_ = std::move(values);
  }

 private:
  bool keep_best_;
  std::int64_t patience_;
  RunProgress& progress_;
  std::vector<std::vector<float>> kept_;
  double last_training_loss_ = 0;  // up to the evaluation before; 0: there was none
  bool warned_ = false;
};

}  // namespace lk
