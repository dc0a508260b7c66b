#include "sweep_flags.h"

#include <algorithm>
#include <array>

#include "flag_names.h"
#include "tensor/error.h"

namespace lk::program {
namespace {

// What is the same for all trials: the base, what is loaded of it, the rows that trials are compared
// on, and where the sweep lies.
constexpr std::array kFixed = {
    "--model",        "--data",           "--eval-data",      "--eval-split", "--eval-rows",
    "--out",          "--resume",         "--config",         "--sweep",      "--device",
    "--dtype",        "--no-verify-base", "--show-rows",      "--base-name",  "--help",
    "--version",      "--threads",        "--base-precision", "--keep-dense", "--processes",
    "--peer-timeout", "--offload-base",   "--shard-base"};

void check_flag(const CLI::App& app, int argc, const char* const* argv, const std::string& flag) {
  if (std::find(kFixed.begin(), kFixed.end(), flag) != kFixed.end())
    throw UsageError(concat("--sweep: ", flag, " is the same for all trials"));
  const CLI::Option* option = app.get_option_no_throw(flag);
  if (!option) throw UsageError("--sweep: " + unknown_flag_text(app, flag));
  if (option->get_items_expected_max() == 0)
    throw UsageError(concat("--sweep: ", flag, " takes no value"));
  for (const std::string& arg : own_names(app, argc, argv))
    if (arg == flag || arg.starts_with(flag + "="))
      throw UsageError(concat("--sweep: ", flag, " is also given alone"));
}

}  // namespace

std::vector<SweepTrial> read_sweep(const CLI::App& app, int argc, const char* const* argv,
                                   const std::string& text, const ReadSettings& read) {
  std::vector<SweepFlag> flags = parse_sweep(text);
  for (std::size_t i = 0; i < flags.size(); ++i) {
    const std::string flag = own_name(app, "--" + flags[i].name);
    check_flag(app, argc, argv, flag);
    flags[i].name = flag.substr(2);
    for (std::size_t j = 0; j < i; ++j)
      if (flags[j].name == flags[i].name)
        throw UsageError(concat("--sweep: ", flag, " is given twice"));
  }
  std::vector<SweepTrial> trials = sweep_trials(flags);
  for (SweepTrial& trial : trials) {
    std::vector<std::string> more;
    for (auto [name, value] : trial.flags) {
      const bool is_list =
          name == "method" || (name == "targets" && !value.starts_with(kTargetExpression));
      if (is_list) std::replace(value.begin(), value.end(), '+', ',');
      more.push_back(concat("--", name, "=", value));
    }
    try {
      trial.settings = read(more);
    } catch (const CLI::ParseError& e) {
      throw UsageError(concat("--sweep: trial ", trial.name, ": ", e.what()));
    } catch (const UsageError& e) {
      throw UsageError(concat("--sweep: trial ", trial.name, ": ", e.what()));
    }
  }
  return trials;
}

}  // namespace lk::program
