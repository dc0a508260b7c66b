#include "program.h"

#include <omp.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <system_error>

#include "flag_names.h"
#include "io/checked.h"
#include "io/printable.h"
#include "lora/rank_patterns.h"
#include "modelfile/hub_cache.h"
#include "process.h"
#include "run/adapter_use.h"
#include "settings_file.h"
#include "tensor/error.h"
#include "version.h"

namespace lk::program {
namespace {

std::atomic<int> g_signal{0};
std::atomic<const char*> g_said_on_signal{nullptr};
volatile std::sig_atomic_t g_line_open = 0;

void print_in_handler(const char* text) {
  static_cast<void>(!::write(STDERR_FILENO, text, std::strlen(text)));
}

void on_signal(int number) {
  const int errno_before = errno;
  const bool again = g_signal.exchange(number) != 0;
  if (again && number == SIGINT) _exit(130);
  if (const char* text = g_said_on_signal; text && !again) {
    if (g_line_open) print_in_handler("\n");
    print_in_handler(text);
    print_in_handler("\n");
    g_line_open = 0;
  }
  errno = errno_before;
}

bool g_silent = false;
const CLI::App* g_app = nullptr;  // of run(), for messages that name its flags
std::string g_folder;             // of this program, as it was called, or empty

void close_line() {
  if (g_line_open) std::fputc('\n', stderr);
  g_line_open = 0;
}

// Accepts the shape of a decimal number only, whatever else a library would accept.
std::string decimal_shape(const std::string& text, bool real) {
  std::size_t i = 0, digits = 0;
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i, ++digits;
  if (real && i < text.size() && text[i] == '.')
    for (++i; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i) ++digits;
  if (real && digits && i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    std::size_t exponent = i;
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
    if (i == exponent) digits = 0;
  }
  if (digits == 0 || i != text.size())
    return concat("'", text, "' is not a ", real ? "decimal number" : "whole number");
  if (!real && digits > 18) return concat("'", text, "' is too large");
  if (real && !(std::abs(std::strtod(text.c_str(), nullptr)) < 1e300))
    return concat("'", text, "' is too large");
  return {};
}

constexpr std::int64_t kMostThreads = 4096;
std::int64_t g_threads = 0;  // of --threads

void add_threads_flag(CLI::App& app) {
  if (app.get_option_no_throw("--threads")) return;
  app.add_option("--threads", g_threads,
                 "of the processor (OMP_NUM_THREADS, or one for each core that it may use)")
      ->check(whole_number());
}

// The value of --threads, as far as it can be known before flags are parsed; 0: none that is valid.
std::int64_t threads_of(const std::vector<std::string>& args) {
  const std::string flag = "--threads";
  std::string text;
  for (std::size_t i = 0; i < args.size(); ++i) {
    if (args[i] == flag && i + 1 < args.size()) text = args[i + 1];
    if (args[i].starts_with(flag + "=")) text = args[i].substr(flag.size() + 1);
  }
  if (!decimal_shape(text, false).empty()) return 0;
  const std::int64_t threads = std::stoll(text);
  return threads >= 1 && threads <= kMostThreads ? threads : 0;
}

}  // namespace

const CLI::Validator& whole_number() {
  static const CLI::Validator v([](std::string& s) { return decimal_shape(s, false); }, "INT");
  return v;
}

const CLI::Validator& seed_number() {
  static const CLI::Validator v(
      [](std::string& s) {
        std::uint64_t seed = 0;
        const char* end = s.data() + s.size();
        const auto [rest, error] = std::from_chars(s.data(), end, seed);
        return error == std::errc() && rest == end
                   ? std::string()
                   : concat("'", s, "' is not a whole number from 0 to ", UINT64_MAX);
      },
      "INT");
  return v;
}

const CLI::Validator& real_number() {
  static const CLI::Validator v([](std::string& s) { return decimal_shape(s, true); }, "NUMBER");
  return v;
}

const CLI::Validator& model_name() {
  static const CLI::Validator v(
      [](std::string& s) {
        s = path_of_model(s, [](const char* name) { return std::getenv(name); });
        return std::string();
      },
      "");
  return v;
}

int run(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  g_app = &app;
  const std::string_view self = argv[0];
  g_folder = self.substr(0, self.rfind('/') + 1);
  // Takes the text as it is: a message about memory must not need any.
  auto fail = [&](const char* what, ExitCode code) {
    close_line();
    std::fprintf(stderr, "%s: error: %s\n", name.c_str(), what);
    return finish(static_cast<int>(code));
  };
  auto fail_safely = [&](const std::string& what, ExitCode code) {
    // Only a plan, which says where memory goes, has lines of its own.
    const Lines lines = code == ExitCode::OutOfMemory ? Lines::Several : Lines::One;
    return fail(without_controls(what, lines).c_str(), code);
  };
  // A result that stdout does not take is lost, whatever the work came to.
  auto unless_lost = [&](int status) {
    const bool taken = std::cout.flush() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    if (taken) return status;
    const std::string why = errno ? std::strerror(errno) : "a write failed";
    return fail_safely(concat("stdout: ", why, "; the result is lost"), ExitCode::Io);
  };
  try {
    add_threads_flag(app);
    set_openmp(argv, threads_of(own_names(app, argc, argv)));
    return finish(with_resources([&] {
      try {
        parse(app, argc, argv);
      } catch (const CLI::Success& e) {
        return unless_lost(app.exit(e));
      } catch (const CLI::ParseError& e) {
        // A required flag that is missing may be one that is misspelt.
        const std::vector<std::string> unknown = unknown_flags(app, argc, argv);
        const bool misspelt = dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr ||
                              dynamic_cast<const CLI::RequiredError*>(&e) != nullptr;
        const std::string wrong = misspelt && !unknown.empty() ? unknown.front() : "";
        return fail_safely(
            concat(
                wrong.empty() ? e.what() : unknown_flag_text(app, wrong.substr(0, wrong.find('='))),
                " (see --help)"),
            ExitCode::Usage);
      }
      if (app.count("--threads") > 0) {
        require(g_threads >= 1 && g_threads <= kMostThreads, "--threads must be in 1 .. ",
                kMostThreads);
        omp_set_num_threads(static_cast<int>(g_threads));  // of a settings file, which is read late
      }
      const int status = body();
      close_line();
      return unless_lost(status);
    }));
  } catch (const Error& e) {
    const std::string what = fields_as_flags(app, e.what());
    return fail_safely(what + named_in_file(app, argc, argv, what), e.code());
  } catch (const std::bad_alloc&) {
    return fail("out of host memory", ExitCode::OutOfMemory);
  } catch (const std::system_error& e) {  // a thread can't be made, or a call of the library's own
    const bool resources = e.code() == std::errc::resource_unavailable_try_again ||
                           e.code() == std::errc::not_enough_memory;
    return fail_safely(e.what(), resources ? ExitCode::OutOfMemory : ExitCode::Io);
  } catch (const std::exception& e) {
    return fail_safely(e.what(), ExitCode::Internal);
  }
}

std::string command(const char* name) { return shell_word(g_folder + name); }

void parse(CLI::App& app, int argc, const char* const* argv, const std::vector<std::string>& more) {
  add_threads_flag(app);
  app.set_version_flag("--version", std::string("lorikeet ") + kVersion);
  app.get_formatter()->column_width(34);
  if (!app.get_option_no_throw("--config")) {  // the benchmarks' is a model's config.json
    app.set_config("--config", "", "take flags from this TOML file; the command line wins");
    app.config_formatter(settings_file(app));
    app.allow_config_extras(CLI::config_extras_mode::error);
  }
  std::vector<std::string> args = own_names(app, argc, argv);
  args.insert(args.end(), more.begin(), more.end());
  std::reverse(args.begin(), args.end());  // as CLI11 takes them
  app.parse(args);
  // As of a shell's variable that is not set: what a run does without the flag was not asked for.
  for (const CLI::Option* option : app.get_options())
    for (const std::string& value : option->results())
      if (value.empty() && option->get_items_expected_max() > 0)
        throw UsageError(concat(option->get_name(), ": the value is empty"));
}

std::int64_t parse_bytes(const std::string& text) {
  static constexpr std::pair<const char*, std::int64_t> kUnits[] = {{"TiB", std::int64_t{1} << 40},
                                                                    {"GiB", std::int64_t{1} << 30},
                                                                    {"MiB", std::int64_t{1} << 20},
                                                                    {"KiB", std::int64_t{1} << 10},
                                                                    {"TB", 1'000'000'000'000},
                                                                    {"GB", 1'000'000'000},
                                                                    {"MB", 1'000'000},
                                                                    {"KB", 1'000},
                                                                    {"kB", 1'000},
                                                                    {"", 1}};
  for (auto [unit, factor] : kUnits) {
    if (!text.ends_with(unit)) continue;
    std::string number = text.substr(0, text.size() - std::string(unit).size());
    if (!decimal_shape(number, true).empty()) break;
    const double bytes = std::strtod(number.c_str(), nullptr) * static_cast<double>(factor);
    const auto whole = to_integer(bytes, 0, INT64_MAX);
    if (!whole) break;
    return *whole;
  }
  throw UsageError(concat("'", text,
                          "' is not a size: a number of bytes, or one with KB, MB, GB, TB, KiB, "
                          "MiB, GiB or TiB behind it, like 24GiB"));
}

std::string duration(double seconds) {
  constexpr double kLongest = 1000 * 3600.0;
  if (!(seconds >= 0)) return "?";
  if (seconds > kLongest) return "over 1000 h";
  const auto s = static_cast<std::int64_t>(seconds);
  char text[32];
  if (s < 3600)
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(s / 60), static_cast<int>(s % 60));
  else
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(s / 3600),
                  static_cast<int>(s / 60 % 60), static_cast<int>(s % 60));
  return text;
}

std::int64_t parse_budget(const std::string& text) {
  if (text.empty()) return 0;
  const std::int64_t bytes = parse_bytes(text);
  if (bytes < 1) throw UsageError(concat("--memory ", text, ": must be positive"));
  return bytes;
}

std::vector<std::string> parse_targets(const std::string& text, const std::string& flag) {
  if (text.starts_with(kTargetExpression)) return {text};
  return parse_list(text, flag);
}

std::vector<std::string> parse_list(const std::string& text, const std::string& flag) {
  std::vector<std::string> items;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    std::size_t end = std::min(text.find(',', begin), text.size());
    items.push_back(text.substr(begin, end - begin));
    if (items.back().empty()) throw UsageError(flag + ": empty name in '" + text + "'");
    begin = end + 1;
  }
  return items;
}

void say_on_signal(const char* text) { g_said_on_signal = text; }

const std::atomic<int>& install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    sigaction(number, &action, &before);
    // As nohup leaves it. A script's `command &` ignores SIGINT too, and there a signal that somebody
    // sends is meant.
    if (number == SIGHUP && before.sa_handler == SIG_IGN) sigaction(number, &before, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // exceeding a file-size limit is an error to report, not a death
  return g_signal;
}

void be_silent() { g_silent = true; }

bool write(std::string_view text) {
  if (g_silent) return true;
  static const bool terminal = isatty(STDOUT_FILENO) == 1;
  const std::string safe = terminal ? without_controls(text, Lines::Several) : std::string();
  if (terminal) text = safe;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  return true;
}

void message(const std::string& text) {
  if (g_silent) return;
  close_line();
  const std::string shown = g_app ? fields_as_flags(*g_app, text) : text;
  std::fprintf(stderr, "%s\n", without_controls(shown, Lines::Several).c_str());
}

void progress(const std::string& text, bool important) {
  if (g_silent) return;
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  if (terminal) {
    std::fprintf(stderr, "\r\033[K%s", without_controls(text, Lines::Several).c_str());
    g_line_open = 1;
    return;
  }
  using Clock = std::chrono::steady_clock;
  static Clock::time_point last{};
  const auto now = Clock::now();
  if (!important && now - last < std::chrono::seconds(2)) return;
  last = now;
  std::fprintf(stderr, "%s\n", without_controls(text, Lines::Several).c_str());
}

bool colour() { return isatty(STDOUT_FILENO) == 1 && !std::getenv("NO_COLOR"); }

}  // namespace lk::program
