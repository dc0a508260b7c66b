// Durable writes and careful reads: the only place that touches the file system (through io/fs.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "io/fs.h"
#include "io/sha256.h"

namespace lk {

// A regular file opened for reading (never blocks on a FIFO; directories and devices are refused).
// Reads are pread: a file cut short gives an InputError, never a signal or silent zeros. Every read
// checks that size and modification time are still those at opening. Safe to read from several
// threads at once.
class InputFile {
 public:
  // Throws InputError if there is no such file, it can't be opened for reading or is not a regular
  // file; IoError if the system fails.
  explicit InputFile(const std::string& path);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  // Exactly `bytes` bytes from `offset`. Throws InputError if the file ends before, or has changed.
  void read(std::uint64_t offset, void* dst, std::size_t bytes) const;

 private:
  std::string path_;
  FileDescriptor fd_;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

// The whole content of a regular file of at most max_bytes. Throws InputError if it is larger
// (before reading any of it).
std::string read_file(const std::string& path, std::size_t max_bytes);

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
  FileDescriptor fd_;
  Sha256 hash_;
  std::uint64_t size_ = 0;
};

// DurableFile for content at hand. Throws IoError and leaves the old file as it was.
void write_file_durably(const std::string& path, std::string_view content);

// Makes what was created or renamed in `folder` ("": the current one) survive a power loss. Returns
// 0 or an errno value.
int fsync_folder(const std::string& folder);

// An append-only file of records: each is written with one write(2), flush() fsyncs.
class AppendLog {
 public:
  explicit AppendLog(const std::string& path);
  AppendLog(const AppendLog&) = delete;
  AppendLog& operator=(const AppendLog&) = delete;
  // Throws IoError; what was written of the record is then taken back, so that no half one stays.
  void append_record(std::string_view record);
  void flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  FileDescriptor fd_;
};

// The same of lines of text (metrics.jsonl).
class LineLog : public AppendLog {
 public:
  using AppendLog::AppendLog;
  void append(std::string_view line) { append_record(std::string(line) + '\n'); }
};

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
