#include "run/resume.h"

#include <algorithm>

#include "io/paths.h"
#include "lora/adapter_io.h"
#include "run/run_identity.h"

namespace lk {
namespace {

// Names that a run gives to files before its first checkpoint.
bool is_early_file(const std::string& name) {
  return name == "metrics.jsonl" || name == "report.html" || name == "run.json" ||
         name == "run.toml" || name.starts_with("events.out.tfevents.");
}

}  // namespace

void refuse_input_folders(const FinetuneSettings& s) {
  const std::string out = real_output_folder(s.out);
  auto refuse = [&](const std::string& folder, const char* whose) {
    if (!folder.empty() && is_same(out, folder))
      throw UsageError(concat("`out` ", s.out, ": is the folder of ", whose, ": give a new one"));
  };
  refuse(is_folder(s.model) ? s.model : parent_folder(s.model), "`model`");
  refuse(s.init_adapter, "`init_adapter`");
  if (s.data != "-") refuse(parent_folder(s.data), "`data`");
  if (!s.eval_data.empty() && s.eval_data != "-") refuse(parent_folder(s.eval_data), "`eval_data`");
}

std::optional<Checkpoint> find_checkpoint(const std::string& out, const OutputFolder& folder) {
  if (has_checkpoint(out)) return Checkpoint(out);
  const std::vector<std::string> names = folder.contents();
  if (std::find(names.begin(), names.end(), kAdapterWeights) != names.end())
    throw UsageError(concat("`resume`: ", out, " holds a finished run and no ", kCheckpoint,
                            " to go on from; train on from its adapter with `init_adapter` ", out,
                            " and another `out`"));
  for (const std::string& name : names)
    if (!is_early_file(name))
      throw UsageError(concat("`resume`: ", out, " holds no ", kCheckpoint, ", and ", name,
                              ", which is no file of a run that was stopped: is it its folder?"));
  return std::nullopt;
}

bool is_finished(const std::string& out) {
  const std::string path = out + "/run.json";
  if (!exists(path)) return false;
  try {
    const Json run = read_json(path);
    return json_string_or(run, "status", "", path) == "finished";
  } catch (const InputError&) {
    return false;  // the checkpoint says what counts; the end is then reached once more
  }
}

std::string check_same_run(const Checkpoint& checkpoint, const Json& identity, bool finished,
                           const std::string& out, const std::vector<std::string>& unknown) {
  const std::int64_t done = checkpoint.steps();
  const std::string end = finished ? concat("; ", out, " holds a finished run of ", done, " steps")
                                   : "; a resumed run must be the same run";
  std::vector<std::string> may_differ = unknown;
  may_differ.push_back("steps");
  const std::string difference = identity_difference(checkpoint.identity(), identity, may_differ);
  if (!difference.empty()) throw UsageError(concat("`resume`: ", difference, end));

  const auto before = json_int(checkpoint.identity(), "steps", 1, INT64_MAX, checkpoint.path());
  const auto now = identity.at("steps").get<std::int64_t>();
  const auto schedule = identity.at("schedule").get<std::string>();
  const bool curve_changes = schedule != "constant" && now != before;
  if (now < done || (curve_changes && now < before))
    throw UsageError(concat("`resume`: steps was ", before, ", now it is ", now, ", and ", done,
                            " are done", end));
  if (finished && now <= before)
    throw UsageError(concat("`resume`: ", out, " holds a finished run of ", done,
                            " steps; more `steps` or `epochs` go on from it"));
  if (!curve_changes) return "";
  return concat("`schedule` ", schedule, ": the first ", done,
                " steps had the learning rates of a run of ", before,
                " steps, the others have those of ", now);
}

}  // namespace lk
