// OutputFolder: a run's own folder, locked against a second run.
#pragma once

#include <string>

#include "io/fs.h"

namespace lk {

// Creates a run's output folder (and its parents): new or empty, and locked against a second run
// (flock on DIR/.lock, which holds the process's number and is removed at the end). Throws
// UsageError if it is not empty or another process holds it, naming that process.
class OutputFolder {
 public:
  OutputFolder(const std::string& path, bool must_be_empty);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  std::string file(const std::string& name) const;

 private:
  std::string path_;
  FileDescriptor lock_;
};

}  // namespace lk
