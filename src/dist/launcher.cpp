#include "dist/launcher.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <optional>
#include <thread>

#include "dist/sockets.h"
#include "dist/world.h"
#include "tensor/error.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLookAfter = std::chrono::milliseconds(50);
constexpr std::size_t kMostShown = 4096;  // bytes of what a process printed

class Launch {
 public:
  Launch(const LaunchSettings& settings, const std::atomic<int>& stop,
         const std::function<void(const std::string&)>& say)
      : settings_(settings), stop_(stop), say_(say) {}

  int run(std::vector<ChildCommand> commands) {
    start(std::move(commands));
    while (watch()) std::this_thread::sleep_for(kLookAfter);
    end_those_who_wait();  // none is left, but this tells why they ended
    return outcome();
  }

 private:
  struct Rank {
    ChildProcess process;
    FileDescriptor printed = {};  // by ranks other than 0
    std::optional<ProcessEnd> end = {};
    bool killed = false;  // from here, as it did not end by itself
    bool waited = false;  // for one that would not come, and was ended from here
  };

  void start(std::vector<ChildCommand> commands) {
    const FileDescriptor listening = listen_on(0, true);
    for (std::size_t r = 0; r < commands.size(); ++r) {
      commands[r].environment.insert({{"RANK", std::to_string(r)},
                                      {"LOCAL_RANK", std::to_string(r)},
                                      {"WORLD_SIZE", std::to_string(commands.size())},
                                      {"LOCAL_WORLD_SIZE", std::to_string(commands.size())},
                                      {"MASTER_ADDR", "127.0.0.1"},
                                      {"MASTER_PORT", std::to_string(port_of(listening))},
                                      {"TORCHELASTIC_USE_AGENT_STORE", "False"}});
      FileDescriptor printed(r == 0 ? -1 : ::memfd_create("printed", MFD_CLOEXEC));
      const int output = printed.get();
      ranks_.push_back(
          {ChildProcess(commands[r], r == 0 ? listening.get() : -1, output), std::move(printed)});
    }
  }

  // Looks at all processes once. False when all have ended.
  bool watch() {
    end_those_who_wait();
    if (const int signal = stop_.load(); signal != passed_on_) {
      for (const Rank& r : ranks_) r.process.signal(signal);
      passed_on_ = signal;
    }
    bool running = false;
    for (Rank& r : ranks_) {
      r.end = r.process.end();
      running = running || !r.end;
      if (r.end && failed(*r.end) && !failed_at_) failed_at_ = Clock::now();
    }
    const auto grace = std::chrono::seconds(settings_.grace_seconds);
    if (failed_at_ && Clock::now() - *failed_at_ > grace)
      for (Rank& r : ranks_) {
        if (r.end || r.killed) continue;
        r.killed = true;
        r.process.signal(SIGKILL);
      }
    return running;
  }

  // A process that dies of the signal did not listen to it yet, so the processes have not met and have nothing
  // to save. Those that do listen would wait for it.
  void end_those_who_wait() {
    const auto died_of_it = [&](const Rank& r) { return r.end && r.end->signal == passed_on_; };
    if (passed_on_ == 0 || std::none_of(ranks_.begin(), ranks_.end(), died_of_it)) return;
    never_met_ = true;
    for (Rank& r : ranks_) {
      if (r.end) continue;
      r.waited = true;
      r.process.signal(SIGKILL);
    }
  }

  // An end other than the regular one, and that by a signal which stops the run.
  bool failed(const ProcessEnd& end) const {
    if (end.signal) return end.signal != passed_on_;
    return end.code != 0 && end.code != 128 + SIGHUP && end.code != 128 + SIGINT &&
           end.code != 128 + SIGTERM;
  }
  std::string name(std::size_t r) const {
    return process_name(static_cast<int>(r), static_cast<int>(ranks_.size()));
  }

  // How likely the end of process r is what ended the others; 0: it is not.
  int severity(std::size_t r) const {
    const ProcessEnd& end = *ranks_[r].end;
    if (!failed(end) || ranks_[r].killed || ranks_[r].waited) return 0;
    if (end.signal) return 2;
    if (end.code == static_cast<int>(ExitCode::Io))  // as those do that lose another
      return never_met_ ? 0 : 1;
    return end.code == static_cast<int>(ExitCode::Internal) ? 4 : 3;
  }

  int outcome() {
    std::size_t cause = 0;
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      if (ranks_[r].killed)
        say_(concat(name(r), " did not end within ", settings_.grace_seconds, " s and was killed"));
      if (severity(r) > severity(cause)) cause = r;
    }
    const ProcessEnd first = *ranks_[0].end, end = *ranks_[cause].end;
    // Nobody reads what the run prints any more, as in `generate | head`: what it would do alone.
    if (first.signal == SIGPIPE) return 128 + SIGPIPE;
    if (severity(cause) == 0 && never_met_) return 128 + passed_on_;
    if (severity(cause) == 0) return first.signal ? 128 + first.signal : first.code;
    if (end.signal) say_(concat(name(cause), " ", how_it_ended(end)));
    if (end.signal) return static_cast<int>(ExitCode::Io);
    if (first.signal || first.code != end.code) show(cause);
    return end.code;
  }

  // Shows the end of what a process printed.
  void show(std::size_t r) {
    const off_t size = ::lseek(ranks_[r].printed.get(), 0, SEEK_END);
    std::string text(std::min(static_cast<std::size_t>(std::max<off_t>(size, 0)), kMostShown), ' ');
    const ssize_t n = ::pread(ranks_[r].printed.get(), text.data(), text.size(),
                              size - static_cast<off_t>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
    while (text.ends_with('\n')) text.pop_back();
    say_(concat(name(r), " ", how_it_ended(*ranks_[r].end), ":\n", text));
  }

  const LaunchSettings settings_;
  const std::atomic<int>& stop_;
  const std::function<void(const std::string&)>& say_;
  std::vector<Rank> ranks_;
  int passed_on_ = 0;       // the signal
  bool never_met_ = false;  // as a process died of the signal
  std::optional<Clock::time_point> failed_at_;
};

}  // namespace

int launch(std::vector<ChildCommand> commands, const LaunchSettings& settings,
           const std::atomic<int>& stop, const std::function<void(const std::string&)>& say) {
  check(!commands.empty(), "launch: no processes");
  return Launch(settings, stop, say).run(std::move(commands));
}

}  // namespace lk
