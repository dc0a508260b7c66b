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

// Parses the command line and runs `body`; returns the exit code. --help and --version print and
// return 0. Errors are printed to stderr as "name: error: ..." and become their exit code
// (tensor/error.h; docs/decisions.md).
int run(CLI::App& app, int argc, char** argv, const std::function<int()>& body);
// Another program of this folder, to be typed as this one was: "build/tools/generate".
std::string command(const char* name);

// Reads the command line, with the flags of --config and with `more` behind it. Throws CLI::Success
// for --help and --version, CLI::ParseError.
void parse(CLI::App& app, int argc, const char* const* argv,
           const std::vector<std::string>& more = {});

// Validators that take decimal numbers only: no hex, no nan or inf, no trailing text.
const CLI::Validator& whole_number();
const CLI::Validator& seed_number();  // of 64 bits, not negative
const CLI::Validator& real_number();

// Parses "24GiB", "50KB" or "1000000" into bytes. Throws UsageError.
std::int64_t parse_bytes(const std::string& text);
// "3:07" or "26:03:07"; "?" for what is no time.
std::string duration(double seconds);
// Parses the value of --memory: a positive number of bytes; 0 if the flag was not given. Throws
// UsageError.
std::int64_t parse_budget(const std::string& text);
// Puts the folder in the hub's cache in the place of a name that the cache has.
const CLI::Validator& model_name();
inline constexpr const char* kModelHelp =
    ".gguf file, Hugging Face folder, or a hub's ORG/NAME[@REVISION] that is in its cache";
inline constexpr const char* kMemoryHelp = "limit, e.g. 24GiB: choose the fastest --recompute";
inline constexpr const char* kTargetsHelp =
    "modules, e.g. q_proj,v_proj; all-linear (the default): every projection of the blocks; or "
    "regex: and an expression "
    "for whole paths, e.g. 'regex:.*layers\\.[0-3]\\..*_proj'";
inline constexpr const char* kBasePrecisionHelp =
    "bits of the frozen base: auto (as the file has it), dense, stored, nf4, fp4, fp8, fp8-head";
inline constexpr const char* kHeldHelp =
    "a dense base's bits: auto (as the adapter was trained), dense, nf4, fp4, fp8, fp8-head";
inline constexpr const char* kKeepDenseHelp =
    "modules that stay dense all the same: down_proj, layers.0, ...";
inline constexpr const char* kFp8ProductsHelp =
    "multiply fp8 matrices in fp8: auto (where the GPU does), on, off";
inline constexpr const char* kRecomputeHelp =
    "none, gate-up, keep-attention, block, offload; :N for the first N layers";
inline constexpr const char* kOffloadBaseHelp =
    "N or all: on a GPU, the base's first N layers wait in host memory, a copy for each process";
inline constexpr const char* kShardBaseHelp =
    "N or all: the base's first N layers are divided among the GPUs of --processes";
inline constexpr const char* kFastReduceHelp =
    "each process adds its own micro-batches first: one exchange of gradients a step, and a result "
    "that depends on the number of processes";
// Parses "a,b" into {"a", "b"}. Throws UsageError for empty items.
std::vector<std::string> parse_list(const std::string& text, const std::string& flag);
// A list, or the one expression that `text` is, commas and all.
std::vector<std::string> parse_targets(const std::string& text, const std::string& flag);

// What the first signal says at once, on stderr: static text without a line feed, or null for nothing.
void say_on_signal(const char* text);

// The number of a signal once SIGINT, SIGTERM or SIGHUP arrived, else 0. A second SIGINT ends the
// program at once.
const std::atomic<int>& install_signal_handlers();

// Prints one line to stderr, control characters as \xNN. On a terminal a progress line is redrawn in place; elsewhere only some
// progress lines are printed.
void message(const std::string& text);
// Writes to stdout at once; on a terminal control characters are shown as \xNN, since a model's text
// could carry the terminal's commands. Returns true, for callbacks whose result may end something.
bool write(std::string_view text);
void progress(const std::string& text, bool important);
// From now on these three print nothing: another process prints for this one.
void be_silent();
bool colour();  // true if stdout is a terminal and NO_COLOR is not set

}  // namespace lk::program
