// What every program shares: flags read strictly, errors turned into exit codes, signals, the
// console.
#pragma once

#include <CLI/CLI.hpp>
#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace lk::program {

// Parses the command line and runs `body`. --help and --version print and end with 0. Errors are
// printed to stderr as "name: error: ..." and become their exit code (tensor/error.h;
// docs/decisions.md).
int run(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

// Validators that take decimal numbers only: no hex, no nan or inf, no trailing text.
const CLI::Validator& whole_number();
const CLI::Validator& real_number();

// "24GiB", "500MiB", "1000000" -> bytes. Throws UsageError.
std::int64_t parse_bytes(const std::string& text);
// The value of --memory: bytes, more than 0; 0 if it was not given. Throws UsageError.
std::int64_t parse_budget(const std::string& text);
inline constexpr const char* kMemoryHelp = "limit, e.g. 24GiB: choose the fastest --recompute";
inline constexpr const char* kTargetsHelp =
    "modules, e.g. q_proj,v_proj (the default, c_attn in GPT-2), or all-linear";
inline constexpr const char* kRecomputeHelp =
    "none, gate-up, block, offload; :N for the first N layers";
// "a,b" -> {"a", "b"}; empty items are a UsageError.
std::vector<std::string> parse_list(const std::string& text, const std::string& flag);

// Set by SIGINT, SIGTERM and SIGHUP; a second SIGINT ends the program at once.
const std::atomic<int>& install_signal_handlers();

// One line on stderr. On a terminal a progress line is redrawn in place; elsewhere a line is
// printed every so often.
void message(const std::string& text);
// To stdout, at once; true, for callbacks that may ask for an end.
bool write(std::string_view text);
void progress(const std::string& text, bool important);
bool colour();  // stdout is a terminal and NO_COLOR is not set

}  // namespace lk::program
