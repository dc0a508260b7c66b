#include "dist/child_process.h"

#include <spawn.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "tensor/error.h"

extern char** environ;  // NOLINT: declared by no header without _GNU_SOURCE

namespace lk {
namespace {

// The null-terminated array of pointers that the system's calls take.
std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  all.reserve(texts.size() + 1);
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// This process's environment with `over` in place of what it has of the same names.
std::vector<std::string> environment_with(const std::map<std::string, std::string>& over) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    if (!over.contains(text.substr(0, text.find('=')))) all.push_back(text);
  }
  for (const auto& [name, value] : over) all.push_back(concat(name, "=", value));
  return all;
}

// posix_spawn()'s two arguments of settings, with their ends.
struct SpawnSettings {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  SpawnSettings() {
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnSettings() {
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&files);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;
};

}  // namespace

ChildProcess::ChildProcess(const ChildCommand& start, int inherited, int output) {
  check(!start.command.empty(), "ChildProcess: no command");
  std::vector<std::string> arguments = start.command;
  std::vector<std::string> environment = environment_with(start.environment);
  SpawnSettings settings;
  int error = 0;
  auto attempt = [&](int result) {
    if (error == 0) error = result;
  };
  if (output >= 0)
    for (int standard : {STDOUT_FILENO, STDERR_FILENO})
      attempt(::posix_spawn_file_actions_adddup2(&settings.files, output, standard));
  if (inherited >= 0)
    attempt(::posix_spawn_file_actions_adddup2(&settings.files, inherited, kChildDescriptor));
  sigset_t ignored;  // signals that this process may ignore, and a child would with it
  ::sigemptyset(&ignored);
  for (int number : {SIGPIPE, SIGXFSZ}) ::sigaddset(&ignored, number);
  attempt(::posix_spawnattr_setsigdefault(&settings.attributes, &ignored));
  attempt(::posix_spawnattr_setflags(&settings.attributes,
                                     POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF));
  attempt(::posix_spawnattr_setpgroup(&settings.attributes, 0));
  if (error == 0)
    error = ::posix_spawn(&id_, arguments[0].c_str(), &settings.files, &settings.attributes,
                          pointers(arguments).data(), pointers(environment).data());
  if (error == 0) return;
  id_ = 0;
  throw IoError(system_message(arguments[0], "can't be started", error));
}

ChildProcess::~ChildProcess() {
  if (id_ == 0 || end_) return;
  signal(SIGKILL);
  wait();
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(id_, other.id_);
  std::swap(end_, other.end_);
  return *this;
}

void ChildProcess::signal(int number) const {
  if (id_ != 0 && !end_) ::kill(id_, number);
}

std::optional<ProcessEnd> ChildProcess::look(int options) {
  if (id_ == 0 || end_) return end_;
  int status = 0;
  const pid_t ended = retry_interrupted([&] { return ::waitpid(id_, &status, options); });
  if (ended == id_)
    end_ = WIFSIGNALED(status) ? ProcessEnd{0, WTERMSIG(status)} : ProcessEnd{WEXITSTATUS(status)};
  return end_;
}

std::string how_it_ended(const ProcessEnd& end) {
  return end.signal ? concat("was ended by signal ", end.signal)
                    : concat("ended with exit code ", end.code);
}

void end_with_parent(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::raise(SIGKILL);
}

}  // namespace lk
