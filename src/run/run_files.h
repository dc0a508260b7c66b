// metrics.jsonl: the steps and evaluations of a run, a line each, for people and programs to read.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/durable.h"
#include "io/json_fwd.h"
#include "io/tfevents.h"
#include "lora/trainer.h"
#include "nn/evaluation.h"
#include "run/samples.h"
#include "tensor/log.h"

namespace lk {

class MetricsLog {
 public:
  // Opens folder/metrics.jsonl. Lines of steps after `keep_steps` (from a run that went further
  // before it was stopped) are dropped, and so are those that can't be read: `log` says which, and
  // how many of the `keep_steps` have no line. With `tensorboard`, also writes event files to the
  // folder (io/tfevents.h). Throws IoError.
  MetricsLog(const std::string& folder, std::int64_t keep_steps, bool tensorboard, LogFunction log);
  // The settings of a run that begins, for the event files alone.
  void settings(const std::string& toml);
  // These write at once. What the system refuses waits for the next call, and `log` is told.
  void step(const StepReport& report);
  // A step that was evaluated already has its line.
  void evaluation(std::int64_t step, const Evaluation& e);
  void samples(std::int64_t step, const std::vector<Sample>& all);
  // Writes what waits and makes everything durable. Throws IoError.
  void flush();

 private:
  // Returns how many steps the lines that it keeps are of.
  std::int64_t keep_old_lines(const std::string& path, std::int64_t keep_steps);
  // Calls `write`; false if the system refuses what it writes, of which `log` is told once.
  bool attempt(const std::function<void()>& write);
  // Writes the line, and with event files what `event` adds to them.
  void add(const OrderedJson& line, const std::function<void(EventFile&)>& event);

  LogFunction log_;
  std::unique_ptr<LineLog> lines_;
  std::unique_ptr<EventFile> events_;  // null without --tensorboard
  std::int64_t evaluated_ = -1;        // the last step that was evaluated
  bool failing_ = false;               // the last line still waits
};

Json evaluation_to_json(const Evaluation& e);

}  // namespace lk
