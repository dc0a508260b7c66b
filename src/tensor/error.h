// Errors: one hierarchy, one exit code per kind. A library never exits: it throws these.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lk {

// Exit statuses of the programs. docs/decisions.md has the table.
enum class ExitCode : int {
  Done = 0,
  Internal = 1,
  Usage = 2,
  BadInput = 3,
  Io = 4,
  OutOfMemory = 5,
  NonFinite = 6,
  NothingTrained = 7,
};

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what, ExitCode code = ExitCode::Internal)
      : std::runtime_error(what), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

struct UsageError : Error {  // a flag or setting is wrong: nothing was touched
  explicit UsageError(const std::string& what) : Error(what, ExitCode::Usage) {}
};
struct InputError : Error {  // a file's content is wrong: names file and key, offset or line
  explicit InputError(const std::string& what) : Error(what, ExitCode::BadInput) {}
};
struct IoError : Error {  // the system refused: the old state is intact
  explicit IoError(const std::string& what) : Error(what, ExitCode::Io) {}
};
struct OutOfMemoryError : Error {
  explicit OutOfMemoryError(const std::string& what) : Error(what, ExitCode::OutOfMemory) {}
};
struct NonFiniteError : Error {
  explicit NonFiniteError(const std::string& what) : Error(what, ExitCode::NonFinite) {}
};
struct NothingTrainedError : Error {
  explicit NothingTrainedError(const std::string& what) : Error(what, ExitCode::NothingTrained) {}
};

// Concatenates its arguments, "a", 3, "b" -> "a3b": the only string formatting the engine needs
// (g++ 12 has no <format>).
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  out.exceptions(std::ios::badbit);  // else a text that finds no memory would be cut in silence
  (out << ... << args);
  return out.str();
}

// Throws Error unless `condition`: for broken invariants inside the engine, never for input. The
// arguments (anything with operator<<) are concatenated to the message only when it is thrown.
template <class... Args>
inline void check(bool condition, const Args&... message) {
  if (!condition) [[unlikely]]
    throw Error(concat(message...));
}

// Throws UsageError unless `condition`: for what a caller gave, with the argument or field named.
template <class... Args>
inline void require(bool condition, const Args&... message) {
  if (!condition) [[unlikely]]
    throw UsageError(concat(message...));
}

}  // namespace lk
