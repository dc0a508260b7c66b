// Runs of the programs on a tiny model, and whether what they leave is the same.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "hostile.h"
#include "io/json.h"
#include "run_program.h"
#include "scratch_folder.h"

namespace lk::test {

inline const std::string kTinyModel = std::string(LK_TEST_DATA) + "/golden/peft/tiny";
inline const std::string kTinyRows = std::string(LK_TEST_DATA) + "/golden/peft/rows.jsonl";

// Programs on a tiny model, each with a folder of its own to write to.
struct Sweeps {
  ScratchFolder scratch;
  std::string operator/(const std::string& name) const { return scratch.file(name); }
  ProgramResult run(const std::string& out, const std::string& more,
                    const std::string& before = "") const {
    return run_shell(before + LK_TOOLS "/finetune --device cpu --model " + kTinyModel + " --data " +
                     kTinyRows + " --batch 2 --eval-split 0.2 --out " + scratch.file(out) + " " +
                     more + " 2>&1");
  }
  // For run_shell(): starts the program, whose number is $P then.
  std::string begin(const std::string& out, const std::string& more) const {
    return LK_TOOLS "/finetune --device cpu --model " + kTinyModel + " --data " + kTinyRows +
           " --batch 2 --eval-split 0.2 --out " + scratch.file(out) + " " + more +
           " 2>&1 &\nP=$!\n";
  }
  Json record(const std::string& out) const { return read_json(scratch.file(out + "/sweep.json")); }
};

// The lines of a run's metrics without what a clock says.
inline std::vector<Json> timeless_metrics(const std::string& folder) {
  std::vector<Json> lines;
  std::ifstream in(folder + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    Json j = parse_json(line, folder);
    j.erase("seconds"), j.erase("tokens_per_second");
    lines.push_back(std::move(j));
  }
  return lines;
}

inline std::string toml_without_out(const std::string& folder) {
  std::string kept;
  std::ifstream in(folder + "/run.toml");
  for (std::string line; std::getline(in, line);)
    if (!line.starts_with("out =")) kept += line + "\n";
  return kept;
}

// Checks that two runs are one run, whatever clocks and names of folders say.
inline void check_same_run(const std::string& a, const std::string& b) {
  CAPTURE(a);
  CHECK(slurp(a + "/adapter_model.safetensors") == slurp(b + "/adapter_model.safetensors"));
  CHECK(slurp(a + "/adapter_config.json") == slurp(b + "/adapter_config.json"));
  CHECK(timeless_metrics(a) == timeless_metrics(b));
  CHECK(toml_without_out(a) == toml_without_out(b));
}

}  // namespace lk::test
