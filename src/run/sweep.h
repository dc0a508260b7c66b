// A sweep: trials of a run with different settings, one after the other over one base in memory, or
// several at a time in processes of their own.
//
// Each trial is a run with a folder of its own, OUT/<trial>/, whose adapter, metrics and run.toml are
// those of a single run there, byte for byte (times apart): the base is frozen, its adapter detaches
// after each trial, and each checks its SHA-256. OUT/sweep.json says what the trials are, which of them
// are done and what came of them; OUT/sweep.html shows it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "dist/child_process.h"
#include "io/json.h"
#include "run/finetune.h"

namespace lk {

struct SweepFlag {
  std::string name;  // as the user wrote it, without dashes
  std::vector<std::string> values;
};

// Parses "rank=1,2,4;lr=1e-4,5e-4". A '+' stands for the comma inside a value of `targets`, which is
// a list: "targets=q_proj+v_proj,all-linear". Throws UsageError for what is empty and for a flag or
// value that is given twice.
std::vector<SweepFlag> parse_sweep(const std::string& text);

struct SweepTrial {
  std::string name;                                        // of its folder: "rank=2_lr=1e-4"
  std::vector<std::pair<std::string, std::string>> flags;  // its own: name and value
  FinetuneSettings settings = {};  // all of them; `out` and `resume` are set
};

// One trial for each combination of values; those of the last flag change fastest. `settings` stay
// empty.
std::vector<SweepTrial> sweep_trials(const std::vector<SweepFlag>& flags);

struct SweepSettings {
  std::string out = {};  // new or empty unless `resume`
  bool resume = false;   // keeps the trials that are done; the others go on or begin again
  // Programs that take trials beside each other, each of which calls serve_sweep() with the same
  // trials. None: the trials run in this process.
  std::vector<ChildCommand> workers = {};
};

struct SweepResult {
  Json record;        // the content of sweep.json
  int exit_code = 0;  // of the worst trial: a bug (1), else the largest; or 128 + signal
};

// Runs the trials. One that fails is recorded and the others go on; a failure that would only repeat
// itself (numbers that are not finite, nothing trained) stays so with `resume`. `stop` ends the sweep
// after its trial's checkpoint. Throws UsageError before anything is loaded if a trial's settings are
// wrong, if they differ in the model or the data, or if `resume` finds a sweep of other settings;
// InputError, IoError.
SweepResult sweep(const SweepSettings& settings, std::vector<SweepTrial> trials,
                  FinetuneListener& listener, const std::atomic<int>& stop);

// A worker's part: runs the trials that the sweep asks for on kChildDescriptor, until that is closed.
void serve_sweep(const SweepSettings& settings, std::vector<SweepTrial> trials,
                 const std::atomic<int>& stop);

// Gives each trial its folder. Throws UsageError if one's settings are wrong, if two with `flags` have
// the same, or if they differ in the model or the data.
void place_trials(const SweepSettings& settings, std::vector<SweepTrial>& trials);

// A table of the trials, the lowest evaluation loss first, as text (control bytes as \xNN) and as a
// page (run/page.h) with all curves, read from the trials' folders under `out`.
std::string sweep_text(const Json& record);
std::string sweep_html(const Json& record, const std::string& out);

}  // namespace lk
