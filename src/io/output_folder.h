// OutputFolder: a run's own folder, locked against a second run.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "io/fs.h"

namespace lk {

// The path of an output folder without a final slash, or, if it is a link to a folder, that of the
// folder: it is locked, cleaned and written to by its own name, whatever becomes of the link. Throws
// UsageError for an empty path and a link to anything else.
std::string real_output_folder(const std::string& path);

// Creates a folder, and its parents, where they are missing. Throws IoError.
void make_folders(const std::filesystem::path& path);

inline constexpr const char* kGiveAnother = "give a new or empty folder";

// Creates a run's output folder (and its parents): new or empty, and locked against a second run
// (flock on DIR/.lock, which holds the process's number and is removed at the end). Temporary files
// of killed runs are removed first. Throws UsageError if it is no folder or link to one, if it is not
// empty (`if_full` ends that message), or if another process holds it, naming that process; IoError.
// A folder that was made here and that nothing was written to is removed at the end.
class OutputFolder {
 public:
  OutputFolder(const std::string& path, bool must_be_empty,
               const std::string& if_full = kGiveAnother);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  std::string file(const std::string& name) const;
  // The names in the folder, sorted, without the lock.
  std::vector<std::string> contents() const;

 private:
  bool lock();

  std::string path_;
  bool made_ = false;
  FileDescriptor lock_;
};

}  // namespace lk
