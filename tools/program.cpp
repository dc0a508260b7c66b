#include "program.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>

#include "io/checked.h"
#include "tensor/error.h"
#include "version.h"

namespace lk::program {
namespace {

std::atomic<int> g_signal{0};

void on_signal(int number) {
  if (g_signal.exchange(number) != 0 && number == SIGINT) _exit(130);
}

bool g_line_open = false;

void close_line() {
  if (g_line_open) std::fputc('\n', stderr);
  g_line_open = false;
}

// A standard descriptor that the caller closed would be the number of the next file opened, and what
// is printed would land there. Each is opened on /dev/null the wrong way round instead: it refuses
// reads or writes as a closed one does.
void keep_standard_descriptors() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) == -1 && errno == EBADF)
      static_cast<void>(::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY));
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

}  // namespace

const CLI::Validator& whole_number() {
  static const CLI::Validator v([](std::string& s) { return decimal_shape(s, false); }, "INT");
  return v;
}

const CLI::Validator& real_number() {
  static const CLI::Validator v([](std::string& s) { return decimal_shape(s, true); }, "NUMBER");
  return v;
}

int run(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  app.set_version_flag("--version", std::string("lorikeet ") + kVersion);
  app.get_formatter()->column_width(34);
  auto fail = [&](const std::string& what, ExitCode code) {
    close_line();
    std::fprintf(stderr, "%s: error: %s\n", name.c_str(), what.c_str());
    return static_cast<int>(code);
  };
  // A result that stdout does not take is lost, whatever the work came to.
  auto unless_lost = [&](int status) {
    const bool taken = std::cout.flush() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    if (taken) return status;
    const std::string why = errno ? std::strerror(errno) : "a write failed";
    return fail(concat("stdout: ", why, "; the result is lost"), ExitCode::Io);
  };
  keep_standard_descriptors();
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return unless_lost(app.exit(e));
  } catch (const CLI::ParseError& e) {
    return fail(std::string(e.what()) + " (see --help)", ExitCode::Usage);
  }
  try {
    int status = body();
    close_line();
    return unless_lost(status);
  } catch (const Error& e) {
    return fail(e.what(), e.code());
  } catch (const std::bad_alloc&) {
    return fail("out of host memory", ExitCode::OutOfMemory);
  } catch (const std::exception& e) {
    return fail(e.what(), ExitCode::Internal);
  }
}

std::int64_t parse_bytes(const std::string& text) {
  static constexpr std::pair<const char*, std::int64_t> kUnits[] = {{"GiB", std::int64_t{1} << 30},
                                                                    {"MiB", std::int64_t{1} << 20},
                                                                    {"KiB", 1024},
                                                                    {"GB", 1'000'000'000},
                                                                    {"MB", 1'000'000},
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
  throw UsageError(concat("'", text, "' is not a size like 24GiB, 500MiB or a number of bytes"));
}

std::int64_t parse_budget(const std::string& text) {
  if (text.empty()) return 0;
  const std::int64_t bytes = parse_bytes(text);
  if (bytes < 1) throw UsageError(concat("--memory ", text, ": must be positive"));
  return bytes;
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

const std::atomic<int>& install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // exceeding a file-size limit is an error to report, not a death
  return g_signal;
}

bool write(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  return true;
}

void message(const std::string& text) {
  close_line();
  std::fprintf(stderr, "%s\n", text.c_str());
}

void progress(const std::string& text, bool important) {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  if (terminal) {
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    g_line_open = true;
    return;
  }
  using Clock = std::chrono::steady_clock;
  static Clock::time_point last{};
  const auto now = Clock::now();
  if (!important && now - last < std::chrono::seconds(2)) return;
  last = now;
  std::fprintf(stderr, "%s\n", text.c_str());
}

bool colour() { return isatty(STDOUT_FILENO) == 1 && !std::getenv("NO_COLOR"); }

}  // namespace lk::program
