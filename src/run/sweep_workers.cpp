#include "run/sweep_workers.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "io/json.h"
#include "io/paths.h"

// The lines between a sweep and its workers are JSON. To a worker: {"trial": 3}. From it:
// {"message": "..."}, {"rows": "..."} and, in the end, {"state": "failed", "exit_code": 6, "error": "..."}.

namespace lk {
namespace {

constexpr int kLookMs = 100;  // how often the sweep looks whether it is to stop
constexpr const char* kStopped = "stopped";

// Passes a worker's messages on to the sweep's process.
struct DistantListener : FinetuneListener {
  explicit DistantListener(LineChannel& channel) : channel_(channel) {}
  void message(const std::string& text) override {
    channel_.send(json_text(Json{{"message", text}}));
  }
  void rows(const std::string& text) override { channel_.send(json_text(Json{{"rows", text}})); }
  LineChannel& channel_;
};

}  // namespace

TrialOutcome run_trial(const SweepTrial& trial, bool resume, SharedBase& base,
                       FinetuneListener& listener, const std::atomic<int>& stop) {
  FinetuneSettings settings = trial.settings;
  settings.resume = resume && exists(settings.out);
  try {
    const FinetuneResult r = finetune(settings, base, listener, stop);
    return {r.signal ? kStopped : "finished"};
  } catch (const Error& e) {
    return {"failed", static_cast<int>(e.code()), e.what()};
  } catch (const std::bad_alloc&) {
    return {"failed", static_cast<int>(ExitCode::OutOfMemory), "out of host memory"};
  }
}

void serve_sweep(const SweepSettings& settings, std::vector<SweepTrial> trials,
                 const std::atomic<int>& stop) {
  place_trials(settings, trials);
  LineChannel channel{FileDescriptor(kChildDescriptor)};
  DistantListener listener(channel);
  SharedBase base;
  while (const std::optional<std::string> line = channel.wait()) {
    const std::string where = "the sweep's request";
    const Json request = parse_json(*line, where);
    const auto i = json_int(request, "trial", 0, std::ssize(trials) - 1, where);
    const TrialOutcome outcome =
        run_trial(trials[static_cast<std::size_t>(i)], settings.resume, base, listener, stop);
    channel.send(json_text(Json{
        {"state", outcome.state}, {"exit_code", outcome.exit_code}, {"error", outcome.error}}));
    if (outcome.state == kStopped) return;  // so would be all further trials
  }
}

SweepWorkers::SweepWorkers(const std::vector<ChildCommand>& commands, Trials trials,
                           FinetuneListener& listener, const std::atomic<int>& stop)
    : trials_(trials), listener_(listener), stop_(stop) {
  for (const ChildCommand& command : commands) workers_.push_back({command});
}

void SweepWorkers::run(std::deque<std::size_t> waiting,
                       const std::function<void(std::size_t)>& begins,
                       const std::function<void(std::size_t, const TrialOutcome&)>& ended) {
  for (int told = 0;;) {
    if (const int signal = stop_.load(); signal != told) {
      for (const Worker& w : workers_)
        if (w.process) w.process->signal(signal);
      told = signal;
    }
    if (told != 0) waiting.clear();
    std::vector<pollfd> heard;
    for (Worker& w : workers_) {
      if (w.trial)
        if (const std::optional<TrialOutcome> outcome = listen(w)) {
          ended(*w.trial, *outcome);
          w.trial.reset();
        }
      if (!w.trial && !waiting.empty()) {
        w.trial = waiting.front();
        waiting.pop_front();
        begins(*w.trial);
        if (!w.process) start(w);
        w.channel.send(json_text(Json{{"trial", *w.trial}}));
      }
      if (w.trial) heard.push_back({w.channel.descriptor(), POLLIN, 0});
    }
    if (heard.empty()) break;
    ::poll(heard.data(), heard.size(), kLookMs);
  }
  for (Worker& w : workers_) {
    w.channel = {};  // which tells it to end
    if (w.process) w.process->wait();
    w.process.reset();
  }
}

void SweepWorkers::start(Worker& worker) {
  auto [ours, theirs] = LineChannel::pair();
  worker.process.emplace(worker.command, theirs.descriptor());
  worker.channel = std::move(ours);
}

std::optional<TrialOutcome> SweepWorkers::listen(Worker& worker) {
  const std::string& name = trials_[*worker.trial].name;
  while (const std::optional<std::string> line = worker.channel.next()) {
    const std::string where = "a worker's report";
    const Json report = parse_json(*line, where);
    if (report.contains("rows")) {
      listener_.rows(json_string(report, "rows", where));
      continue;
    }
    if (!report.contains("state")) {
      listener_.message(concat(name, ": ", json_string(report, "message", where)));
      continue;
    }
    TrialOutcome outcome{json_string(report, "state", where),
                         static_cast<int>(json_int(report, "exit_code", 0, 255, where)),
                         json_string(report, "error", where)};
    if (outcome.state != kStopped || stop_.load() != 0) return outcome;
    // A signal to this worker alone does not stop the sweep: its trial fails, as if it was killed.
    worker.end();
    return TrialOutcome{"failed", static_cast<int>(ExitCode::Io),
                        "its process was told to stop by a signal"};
  }
  if (!worker.channel.closed()) return std::nullopt;
  return lost(worker);
}

ProcessEnd SweepWorkers::Worker::end() {
  const ProcessEnd end = process->wait();
  process.reset();
  channel = {};
  return end;
}

// The outcome of a trial whose worker is gone.
TrialOutcome SweepWorkers::lost(Worker& worker) {
  const ProcessEnd end = worker.end();
  if (end.signal != 0 && end.signal == stop_.load()) return {kStopped};  // before it was ready
  // One that ended as if all were well must not have.
  const int code = end.signal ? static_cast<int>(ExitCode::Io) : std::max(end.code, 1);
  return {"failed", code, concat("its process ", how_it_ended(end))};
}

}  // namespace lk
