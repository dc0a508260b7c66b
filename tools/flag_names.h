// The names of flags: those of other tools that mean the same, and what a wrong one was meant to be.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace lk::program {

// The command line (without the program's name) with other tools' names of flags replaced by ours,
// where the app has no flag of that name itself: "--learning_rate=1e-4" becomes "--lr=1e-4".
std::vector<std::string> own_names(const CLI::App& app, int argc, const char* const* argv);

// One such name: "--learning_rate" becomes "--lr".
std::string own_name(const CLI::App& app, const std::string& flag);

// What on the command line looks like a flag and is none of the app's.
std::vector<std::string> unknown_flags(const CLI::App& app, int argc, const char* const* argv);

// A library's message with the fields that it names in backticks shown as the app's flags:
// "`grad_accum`: must be positive" becomes "--grad-accum: must be positive".
std::string fields_as_flags(const CLI::App& app, const std::string& message);

// Which of the flags that a message names stand in the settings file of --config and not on the command
// line, for whoever did not write it: " (--warmup stands in run.toml)". Empty if none does.
std::string named_in_file(const CLI::App& app, int argc, const char* const* argv,
                          const std::string& message);

// What to say of a flag of other tools (without '=') that has no twin here; empty if nothing is known.
std::string hint_for_flag(const CLI::App& app, const std::string& flag);

// What to say of a flag that the app does not have: "there is no flag --rnk; did you mean --rank?"
std::string unknown_flag_text(const CLI::App& app, const std::string& flag);

// The flag of the app that `wrong` was probably meant to be: at most a third of its letters differ,
// or it contains the other. Empty if there is none.
std::string nearest_flag(const CLI::App& app, const std::string& wrong);

}  // namespace lk::program
