#include "run/run_progress.h"

#include <limits>

#include "run/json_values.h"

namespace lk {
namespace {

double number_or_nan(const Json& json, const char* key, const std::string& where) {
  const Json& value = json_at(json, key, where);
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : json_number(json, key, where);
}

std::int64_t count(const Json& json, const char* key, const std::string& where) {
  return json_int(json, key, 0, INT64_MAX, where);
}

}  // namespace

Json to_json(const RunProgress& p) {
  Json json = {{"first_loss", finite_or_null(p.first_loss)},
               {"last_loss", finite_or_null(p.last_loss)},
               {"seconds", p.seconds},
               {"first_step_seconds", p.first_step_seconds},
               {"tokens", p.tokens},
               {"peak_bytes", p.peak_bytes},
               {"recorded_steps", p.recorded_steps}};
  if (const auto& e = p.eval_before)
    json["eval_before"] = {{"loss", finite_or_null(e->loss)},
                           {"perplexity", finite_or_null(e->perplexity)},
                           {"tokens", e->tokens},
                           {"supervised_tokens", e->supervised_tokens},
                           {"rows", e->rows}};
  if (p.best)
    json["best"] = {{"step", p.best->step},
                    {"loss", p.best->loss},
                    {"evaluations_since", p.evaluations_since_best}};
  return json;
}

RunProgress progress_from_json(const Json& json, const std::string& where) {
  RunProgress p;
  p.first_loss = number_or_nan(json, "first_loss", where);
  p.last_loss = number_or_nan(json, "last_loss", where);
  p.seconds = json_number(json, "seconds", where);
  p.first_step_seconds = json_number(json, "first_step_seconds", where);
  p.tokens = count(json, "tokens", where);
  p.peak_bytes = json_int_or(json, "peak_bytes", 0, 0, INT64_MAX, where);
  p.recorded_steps = count(json, "recorded_steps", where);
  if (json.contains("eval_before")) {
    const Json& e = json["eval_before"];
    const std::string inside = where + ": eval_before";
    p.eval_before = Evaluation{.loss = number_or_nan(e, "loss", inside),
                               .perplexity = number_or_nan(e, "perplexity", inside),
                               .tokens = count(e, "tokens", inside),
                               .supervised_tokens = count(e, "supervised_tokens", inside),
                               .rows = count(e, "rows", inside)};
  }
  if (json.contains("best")) {
    const Json& best = json["best"];
    const std::string inside = where + ": best";
    p.best = BestEvaluation{count(best, "step", inside), json_number(best, "loss", inside)};
    p.evaluations_since_best = count(best, "evaluations_since", inside);
  }
  return p;
}

}  // namespace lk
