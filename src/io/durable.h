// Durable writes: a file is replaced whole or not at all, and logs grow by whole records.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "io/fs.h"
#include "io/sha256.h"

namespace lk {

// Replaces `path` with what is appended, atomically and durably, at commit(): temp file in the same
// folder, fsync, re-open and compare (size and SHA-256), rename, fsync of the folder. Without
// commit(), or if any step fails, the temp file is removed and the old file is as it was. All
// functions throw IoError.
class DurableFile {
 public:
  explicit DurableFile(const std::string& path);
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  void append(const void* data, std::size_t bytes);
  void commit();

 private:
  void verify();

  std::string path_, temp_;
  FileDescriptor fd_, lock_;  // what is written through, and what holds the temp file's lock
  Sha256 hash_;
  std::uint64_t size_ = 0;
};

// Writes `content` to `path` through a DurableFile. Throws IoError and leaves the old file as it
// was.
void write_file_durably(const std::string& path, std::string_view content);

// Makes what was created or renamed in `folder` ("": the current one) survive a power loss. Returns
// 0 or an errno value.
int fsync_folder(const std::string& folder);

// An append-only file of records: each is written with one write(2), flush() fsyncs. A record that
// the system refuses waits in memory and goes out before the next one, in order: a disk that is full
// for a while loses nothing.
class AppendLog {
 public:
  explicit AppendLog(const std::string& path);
  AppendLog(const AppendLog&) = delete;
  AppendLog& operator=(const AppendLog&) = delete;
  // Appends what waits and this record. If that fails, throws IoError after taking back what was
  // written, so that no half record stays; the record then waits.
  void append_record(std::string_view record);
  // Makes all records durable, those that wait included. Throws IoError.
  void flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_, waiting_;
  FileDescriptor fd_;
};

// An AppendLog of lines of text, such as metrics.jsonl.
class LineLog : public AppendLog {
 public:
  using AppendLog::AppendLog;
  void append(std::string_view line) { append_record(std::string(line) + '\n'); }
};

}  // namespace lk
