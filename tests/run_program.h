// Runs one of the programs and takes what it prints.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace lk::test {

struct ProgramResult {
  int status = -1;  // the exit code, or 128 and the signal
  std::string out;  // stdout and stderr together, or stdout alone
};

// Runs a line of the shell.
inline ProgramResult run_shell(const std::string& command) {
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  ProgramResult r;
  std::array<char, 4096> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe))
    r.out.append(buffer.data(), n);
  const int status = ::pclose(pipe);
  r.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return r;
}

// `arguments` begin with the program's name.
inline ProgramResult run_program(const std::string& arguments,
                                 const std::string& redirect = " 2>&1") {
  return run_shell(std::string(LK_TOOLS) + "/" + arguments + redirect);
}

// It ended with this status and printed this text.
inline void check_says(const ProgramResult& r, int status, const std::string& part) {
  CHECK_MESSAGE(r.status == status, r.out);
  CHECK_MESSAGE(r.out.find(part) != std::string::npos, r.out, " lacks ", part);
}

}  // namespace lk::test
