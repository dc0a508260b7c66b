// --sweep: which flags it may vary, and the command line of each trial.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "run/sweep.h"

namespace lk::program {

// Settings from the command line with `more` behind it.
using ReadSettings = std::function<FinetuneSettings(const std::vector<std::string>& more)>;

// The trials that the value of --sweep describes, with all of their settings. Flags are the app's, by
// any of their names. Throws UsageError naming a flag that is unknown, takes no value, can't vary
// within a sweep or stands on the command line too, and for a value that its flag does not take.
std::vector<SweepTrial> read_sweep(const CLI::App& app, int argc, const char* const* argv,
                                   const std::string& text, const ReadSettings& read);

}  // namespace lk::program
