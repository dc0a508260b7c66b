// Sweeps on several devices: processes that take a sweep's trials, one each at a time. A process shares
// no memory with others, so one that dies takes its trial with it and nothing else.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/child_process.h"
#include "dist/line_channel.h"
#include "io/json_fwd.h"
#include "run/shared_base.h"
#include "run/sweep.h"

namespace lk {

// What came of a trial.
struct TrialOutcome {
  std::string state = "finished";  // or "stopped" by a signal, or "failed"
  int exit_code = 0;
  std::string error = {};  // why it failed
};

// Runs a trial in this process.
TrialOutcome run_trial(const SweepTrial& trial, bool resume, SharedBase& base,
                       FinetuneListener& listener, const std::atomic<int>& stop);

// Hands trials to workers. A worker that dies, or that is told to stop while the sweep is not, fails its
// trial, and another process takes its place.
class SweepWorkers {
 public:
  using Trials = const std::vector<SweepTrial>&;
  SweepWorkers(const std::vector<ChildCommand>& commands, Trials trials, FinetuneListener& listener,
               const std::atomic<int>& stop);

  // Runs the trials of these numbers, telling of each when it begins and when it ends. Once `stop` is
  // set the workers save what they have, and no more trials begin. Throws IoError if no worker can be
  // started.
  void run(std::deque<std::size_t> waiting, const std::function<void(std::size_t)>& begins,
           const std::function<void(std::size_t, const TrialOutcome&)>& ended);

 private:
  struct Worker {
    ChildCommand command;
    LineChannel channel = {};
    std::optional<ChildProcess> process = {};
    std::optional<std::size_t> trial = {};
    ProcessEnd end();  // waits for the process, which another may follow
  };
  void start(Worker& worker);
  // Hears what the worker has said; returns its trial's outcome if it ended.
  std::optional<TrialOutcome> listen(Worker& worker);
  TrialOutcome lost(Worker& worker);

  Trials trials_;
  FinetuneListener& listener_;
  const std::atomic<int>& stop_;
  std::vector<Worker> workers_;
};

}  // namespace lk
