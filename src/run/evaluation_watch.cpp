#include "run/evaluation_watch.h"

#include <cmath>

namespace lk {
namespace {

constexpr double kRise = 1.01;  // above the lowest evaluation: less may be chance

std::vector<std::vector<float>> values_of(const Method& method) {
  std::vector<std::vector<float>> all;
  for (const Parameter* p : method.parameters()) all.push_back(to_host<float>(p->value()));
  return all;
}

void set_values(const std::vector<Parameter*>& parameters,
                const std::vector<std::vector<float>>& values) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& value = parameters[i]->value();
    value.backend().upload(value, values[i].data(), values[i].size() * sizeof(float));
    parameters[i]->refresh();
  }
}

// Puts the numbers back whatever happens meanwhile.
class Restored {
 public:
  explicit Restored(const Method& method)
      : parameters_(method.parameters()), values_(values_of(method)) {}
  ~Restored() { set_values(parameters_, values_); }
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;

 private:
  std::vector<Parameter*> parameters_;
  std::vector<std::vector<float>> values_;
};

}  // namespace

std::string EvaluationWatch::evaluated(std::int64_t step, const Evaluation& e, double training_loss,
                                       const Method& method) {
  if (step == 0 || !std::isfinite(e.loss)) return "";
  if (!progress_.best || e.loss < progress_.best->loss) {
    progress_.best = BestEvaluation{step, e.loss};
    progress_.evaluations_since_best = 0;
    if (keep_best_) kept_ = values_of(method);
  } else if (step > progress_.best->step) {
    ++progress_.evaluations_since_best;
  }
  const bool rises = e.loss > kRise * progress_.best->loss,
             learns = last_training_loss_ > 0 && training_loss < last_training_loss_;
  last_training_loss_ = training_loss;
  if (!rises || !learns || warned_) return "";
  warned_ = true;
  return concat(
      "warning: the evaluation loss rises while the training loss falls: the run begins to "
      "learn its rows by heart; the lowest evaluation was ",
      progress_.best->loss, " at step ", progress_.best->step,
      keep_best_ ? ", whose adapter is kept" : "");
}

void EvaluationWatch::with_kept(Method& method, const std::function<void()>& f) const {
  if (kept_.empty()) return f();
  const Restored after(method);
  set_values(method.parameters(), kept_);
  f();
}

}  // namespace lk
