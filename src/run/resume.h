// What a run finds in its output folder, and whether it may go on from there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/output_folder.h"
#include "run/checkpoint.h"
#include "run/finetune.h"

namespace lk {

// Refuses an --out that is the folder of the run's own model, data or adapter to start from. Throws
// UsageError.
void refuse_input_folders(const FinetuneSettings& settings);

// The checkpoint in the folder of a run that is to be resumed, read and found sound. Nothing if the
// run was stopped before its first checkpoint: it starts at step 0. Throws UsageError if the folder
// holds a finished run without a checkpoint, or files that are no run's; InputError, IoError.
std::optional<Checkpoint> find_checkpoint(const std::string& out, const OutputFolder& folder);

// Whether `out` holds a run that reached its end and recorded it.
bool is_finished(const std::string& out);

// Refuses to go on from `checkpoint` as another run, throwing UsageError that names in what the
// identities differ, but for the fields of `unknown`. The number of steps may grow, and
// shrink if the schedule does not depend on it, but not below what is done; a finished run must get
// more than it had, also if it ended early, out of patience. Returns what a user should know, or nothing.
std::string check_same_run(const Checkpoint& checkpoint, const Json& identity, bool finished,
                           const std::string& out, const std::vector<std::string>& unknown);

}  // namespace lk
