// Messages of the library: they go to a function that its user supplies, or nowhere.
#pragma once

#include <functional>
#include <string>

namespace lk {

// Receives one line without its newline: what happens now, or a finding. Called on the thread that
// called the library.
using LogFunction = std::function<void(const std::string& line)>;

inline void log_line(const LogFunction& log, const std::string& line) {
  if (log) log(line);
}

}  // namespace lk
