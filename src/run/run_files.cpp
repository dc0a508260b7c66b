#include "run/run_files.h"

#include <cmath>
#include <sstream>
#include <utility>

#include "io/input_file.h"
#include "io/json.h"
#include "io/paths.h"
#include "run/json_values.h"

namespace lk {

// A line that can't be read says nothing of the others: it is left out, and the user is told.
std::int64_t MetricsLog::keep_old_lines(const std::string& path, std::int64_t keep_steps) {
  std::istringstream old(read_file(path, std::size_t{1} << 30));
  old.exceptions(std::ios::badbit);  // a line that finds no memory is not the end of the file
  std::string kept, line;
  std::int64_t steps = 0;
  for (std::size_t number = 1; std::getline(old, line); ++number) {
    if (line.empty() || old.eof()) continue;  // a last line without its newline was cut off
    const std::string where = concat(path, ":", number);
    try {
      const Json j = parse_json(line, where);
      const std::int64_t step = json_int(j, "step", 0, INT64_MAX, where);
      if (step > keep_steps) continue;
      if (j.contains("eval_loss")) evaluated_ = step;
      steps += j.contains("loss");
      kept += line + "\n";
    } catch (const InputError& e) {
      log_line(log_, concat("warning: ", e.what(), ": the line is left out"));
    }
  }
  write_file_durably(path, kept);
  return steps;
}

MetricsLog::MetricsLog(const std::string& folder, std::int64_t keep_steps, bool tensorboard,
                       LogFunction log)
    : log_(std::move(log)) {
  const std::string path = folder + "/metrics.jsonl";
  const std::int64_t kept = exists(path) ? keep_old_lines(path, keep_steps) : 0;
  if (kept < keep_steps)
    log_line(log_, concat("warning: ", path, ": has ", kept, " of the ", keep_steps,
                          " steps that were made before: curves and report lack the others"));
  lines_ = std::make_unique<LineLog>(path);
  if (tensorboard) events_ = std::make_unique<EventFile>(folder, keep_steps + 1);
}

void MetricsLog::flush() {
  lines_->flush();
  if (events_) events_->flush();
}

bool MetricsLog::attempt(const std::function<void()>& write) {
  try {
    write();
  } catch (const IoError& e) {  // what could not be written waits in its log
    if (!std::exchange(failing_, true))
      log_line(log_, concat("warning: ", e.what(), "; the next step tries again"));
    return false;
  }
  return true;
}

void MetricsLog::add(const OrderedJson& line, const std::function<void(EventFile&)>& event) {
  const bool written = attempt([&] { lines_->append(json_text(line)); });
  if (events_) attempt([&] { event(*events_); });
  failing_ = failing_ && !written;
}

void MetricsLog::settings(const std::string& toml) {
  if (events_) attempt([&] { events_->add_text(0, "settings", markdown_verbatim(toml)); });
}

void MetricsLog::step(const StepReport& r) {
  OrderedJson line = {
      {"step", r.step},       {"loss", finite_or_null(r.loss)},
      {"lr", r.lr},           {"grad_norm", finite_or_null(r.grad_norm)},
      {"tokens", r.tokens},   {"supervised_tokens", r.supervised_tokens},
      {"seconds", r.seconds}, {"tokens_per_second", static_cast<double>(r.tokens) / r.seconds}};
  if (r.skipped) line["skipped"] = true;
  add(line, [&](EventFile& events) {
    events.add(r.step, {{"loss", r.loss},
                        {"lr", r.lr},
                        {"grad_norm", r.grad_norm},
                        {"tokens_per_second", static_cast<double>(r.tokens) / r.seconds}});
  });
}

void MetricsLog::evaluation(std::int64_t step, const Evaluation& e) {
  if (std::exchange(evaluated_, step) == step) return;
  add({{"step", step},
       {"eval_loss", finite_or_null(e.loss)},
       {"eval_tokens", e.supervised_tokens},
       {"perplexity", finite_or_null(e.perplexity)}},
      [&](EventFile& events) {
        events.add(step, {{"eval_loss", e.loss}});
      });
}

void MetricsLog::samples(std::int64_t step, const std::vector<Sample>& all) {
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Sample& s = all[i];
    add({{"step", step},
         {"sample", {{"prompt", s.prompt}, {"text", s.adapted}, {"reference", s.reference}}}},
        [&](EventFile& events) {
          events.add_text(step, concat("samples/", i + 1),
                          "**prompt**\n" + markdown_verbatim(s.prompt) + "\n**written**\n" +
                              markdown_verbatim(s.adapted) + "\n**expected**\n" +
                              markdown_verbatim(s.reference));
        });
  }
}

Json evaluation_to_json(const Evaluation& e) {
  return {{"loss", finite_or_null(e.loss)},
          {"perplexity", finite_or_null(e.perplexity)},
          {"tokens", e.supervised_tokens},
          {"rows", e.rows}};
}

}  // namespace lk
