// StagedOutput: a file or folder that appears whole or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/fs.h"

namespace lk {

// Everything is made in a hidden folder beside the target; commit() gives it the target's name.
// Without commit(), or if a step fails, the hidden folder goes away with all that file() named, and
// nothing is at the target, as before. A killed process leaves the hidden folder, which never has
// the target's name; the next output that is put into the same parent removes it.
class StagedOutput {
 public:
  enum class Kind { File, Folder };

  // Throws UsageError if `target` exists in any form or another process is writing it, IoError if
  // its folder isn't there, takes no new files or has less than `bytes` free: nothing has been
  // created then.
  StagedOutput(const std::string& target, Kind kind, std::uint64_t bytes);
  ~StagedOutput();
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  // The path at which to write the file `name` of the folder; for Kind::File, any name gives the
  // file. A name may have one folder before it, "sub/name", which is made here. Throws IoError.
  std::string file(const std::string& name);
  // The path of the hidden output, for reading it back before commit().
  const std::string& path() const { return content_; }
  // Renames the output to the target, with the fsyncs around it; the files themselves are durable
  // (see DurableFile). Throws IoError; UsageError if something has taken the target's name by now.
  void commit();

 private:
  void make_hidden();

  std::string target_, parent_, hidden_, content_;
  FileDescriptor lock_;  // on the hidden folder
  Kind kind_;
  std::vector<std::string> files_, folders_;
};

}  // namespace lk
