#include "run/run_files.h"

#include <cmath>
#include <sstream>

#include "io/input_file.h"
#include "io/json.h"
#include "io/paths.h"

namespace lk {
namespace {
// JSON has no NaN: a value that is not finite is written as null.
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }
}  // namespace

MetricsLog::MetricsLog(const std::string& folder, std::int64_t keep_steps, bool tensorboard) {
  const std::string path = folder + "/metrics.jsonl";
  if (exists(path)) {
    std::istringstream old(read_file(path, std::size_t{1} << 30));
    old.exceptions(std::ios::badbit);  // a line that finds no memory is not the end of the file
    std::string kept, line;
    while (std::getline(old, line)) {
      if (line.empty() || old.eof()) continue;  // a last line without its newline was cut off
      Json j = parse_json(line, path);
      if (json_int_or(j, "step", 0, 0, INT64_MAX, path) <= keep_steps) kept += line + "\n";
    }
    write_file_durably(path, kept);
  }
  log_ = std::make_unique<LineLog>(path);
  if (tensorboard) events_ = std::make_unique<EventFile>(folder, keep_steps + 1);
}

void MetricsLog::flush() {
  log_->flush();
  if (events_) events_->flush();
}

void MetricsLog::step(const StepReport& r) {
  OrderedJson line = {
      {"step", r.step},       {"loss", number(r.loss)},
      {"lr", r.lr},           {"grad_norm", number(r.grad_norm)},
      {"tokens", r.tokens},   {"supervised_tokens", r.supervised_tokens},
      {"seconds", r.seconds}, {"tokens_per_second", static_cast<double>(r.tokens) / r.seconds}};
  if (r.skipped) line["skipped"] = true;
  log_->append(json_text(line));
  if (events_)
    events_->add(r.step, {{"loss", r.loss},
                          {"lr", r.lr},
                          {"grad_norm", r.grad_norm},
                          {"tokens_per_second", static_cast<double>(r.tokens) / r.seconds}});
}

void MetricsLog::evaluation(std::int64_t step, const Evaluation& e) {
  OrderedJson line = {{"step", step},
                      {"eval_loss", number(e.loss)},
                      {"eval_tokens", e.supervised_tokens},
                      {"perplexity", number(e.perplexity)}};
  log_->append(json_text(line));
  if (events_) events_->add(step, {{"eval_loss", e.loss}});
}

Json evaluation_to_json(const Evaluation& e) {
  return {{"loss", number(e.loss)},
          {"perplexity", number(e.perplexity)},
          {"tokens", e.supervised_tokens},
          {"rows", e.rows}};
}

}  // namespace lk
