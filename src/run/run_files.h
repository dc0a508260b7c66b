// metrics.jsonl: the steps and evaluations of a run, a line each, for people and programs to read.
#pragma once

#include <memory>
#include <string>

#include "io/durable.h"
#include "io/json_fwd.h"
#include "io/tfevents.h"
#include "lora/trainer.h"
#include "nn/evaluation.h"

namespace lk {

class MetricsLog {
 public:
  // Opens folder/metrics.jsonl. Lines of steps after `keep_steps` (from a run that went further
  // before it was stopped) are dropped. With `tensorboard`, also writes event files to the folder
  // (io/tfevents.h).
  MetricsLog(const std::string& folder, std::int64_t keep_steps, bool tensorboard);
  void step(const StepReport& report);
  void evaluation(std::int64_t step, const Evaluation& e);
  void flush();

 private:
  std::unique_ptr<LineLog> log_;
  std::unique_ptr<EventFile> events_;  // null without --tensorboard
};

Json evaluation_to_json(const Evaluation& e);

}  // namespace lk
