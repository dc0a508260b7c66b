// ChildProcess: a program that this one starts and that does not outlive it.
#pragma once

#include <sys/types.h>
#include <sys/wait.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/fs.h"

namespace lk {

// Descriptors that a child finds open beside the standard ones.
inline constexpr int kChildDescriptor = 3;

// A program to start: its path and arguments, and what its environment has over this process's own.
struct ChildCommand {
  std::vector<std::string> command;
  std::map<std::string, std::string> environment = {};
};

// How a process ended: with an exit code, or by a signal (then not 0).
struct ProcessEnd {
  int code = 0, signal = 0;
};
// "was ended by signal 9", "ended with exit code 5"
std::string how_it_ended(const ProcessEnd& end);

class ChildProcess {
 public:
  // Starts the program in a process group of its own, so that a terminal's Ctrl-C reaches this
  // process alone, which passes it on. The child gets `inherited`, if it is one, as
  // kChildDescriptor, and `output`, if it is one, as stdout and stderr. Throws IoError.
  ChildProcess(const ChildCommand& start, int inherited, int output = -1);
  // Kills a child that still runs, and waits for it.
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept : id_(other.id_), end_(other.end_) { other.id_ = 0; }
  ChildProcess& operator=(ChildProcess&& other) noexcept;

  pid_t id() const { return id_; }
  void signal(int number) const;
  // Nothing while it runs.
  std::optional<ProcessEnd> end() { return look(WNOHANG); }
  ProcessEnd wait() { return look(0).value_or(ProcessEnd{}); }

 private:
  std::optional<ProcessEnd> look(int options);

  pid_t id_ = 0;  // 0: none
  std::optional<ProcessEnd> end_;
};

// For a child: the system is to end this process when its parent ends, however that happens. `parent`
// is the parent's number: a process whose parent has ended before ends now, with SIGKILL.
void end_with_parent(pid_t parent);

}  // namespace lk
