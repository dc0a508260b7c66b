#include "io/staged_output.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "io/durable.h"
#include "io/paths.h"
#include "io/temporary.h"
#include "tensor/error.h"

namespace lk {

namespace stdfs = std::filesystem;

namespace {

constexpr int kMostFolderTries = 1000;  // at a hidden folder that other processes keep removing

UsageError exists_already(const std::string& target) {
  return UsageError(target + ": exists already; it is never overwritten");
}

std::uint64_t free_bytes(const std::string& folder) {
  struct statvfs s {};
  if (retry_interrupted([&] { return fs().statvfs(folder.c_str(), &s); }) != 0)
    throw IoError(system_message(folder, "cannot examine the file system", errno));
  return static_cast<std::uint64_t>(s.f_bavail) * s.f_frsize;
}

}  // namespace

StagedOutput::StagedOutput(const std::string& target, Kind kind, std::uint64_t bytes)
    : kind_(kind) {
  stdfs::path path(target);
  if (!path.has_filename()) path = path.parent_path();  // "out/" is "out"
  if (path.filename().empty() || path.filename() == "." || path.filename() == "..")
    throw UsageError("'" + target + "' is no name for an output");
  target_ = path.string();
  parent_ = path.has_parent_path() ? path.parent_path().string() : ".";
  if (is_taken(target_)) throw exists_already(target_);
  if (!is_folder(parent_))
    throw IoError(parent_ + ": is not a folder that exists: " + target_ + " can't be put there");
  remove_abandoned(parent_);  // which may free the bytes needed
  if (std::uint64_t free = free_bytes(parent_); free < bytes)
    throw IoError(concat(target_, ": needs ", (bytes >> 20) + 1, " MiB, but ", parent_, " has ",
                         free >> 20, " MiB free; nothing was written"));
  make_hidden();
  content_ = kind == Kind::Folder ? hidden_ : (stdfs::path(hidden_) / path.filename()).string();
}

// The hidden folder's name is the target's, so that two writers of one target meet there.
void StagedOutput::make_hidden() {
  const std::string hidden = shared_temporary(target_);
  for (int tries = 0; tries < kMostFolderTries; ++tries) {
    const bool made = fs().mkdir(hidden.c_str(), 0777) == 0;
    if (!made && errno != EEXIST)
      throw IoError(system_message(hidden, "cannot create the folder", errno));
    Hold hold = Hold::Gone;
    try {
      hold = hold_temporary(hidden, made, lock_);
    } catch (const IoError&) {
      if (made) fs().rmdir(hidden.c_str());
      throw;
    }
    if (hold == Hold::Held) {
      if (!made) empty_temporary_folder(hidden);  // what a killed process left
      hidden_ = hidden;
      return;
    }
    // One that was new a moment ago can only be held by somebody who removes what is abandoned.
    if (hold == Hold::Taken && !made) throw UsageError(target_ + ": another process is writing it");
  }
  throw IoError(hidden + ": cannot create the folder: other processes keep removing it");
}

StagedOutput::~StagedOutput() {
  if (hidden_.empty()) return;
  for (const std::string& file : files_) fs().unlink(file.c_str());
  for (const std::string& folder : folders_) fs().rmdir(folder.c_str());
  fs().rmdir(hidden_.c_str());
}

std::string StagedOutput::file(const std::string& name) {
  const std::string path =
      kind_ == Kind::Folder ? (stdfs::path(hidden_) / name).string() : content_;
  if (std::find(files_.begin(), files_.end(), path) != files_.end()) return path;
  const std::string folder = parent_folder(path);
  const bool known = std::find(folders_.begin(), folders_.end(), folder) != folders_.end();
  if (kind_ == Kind::Folder && folder != hidden_ && !known) {
    if (fs().mkdir(folder.c_str(), 0777) != 0)
      throw IoError(system_message(folder, "cannot create the folder", errno));
    folders_.push_back(folder);
  }
  files_.push_back(path);
  return path;
}

void StagedOutput::commit() {
  if (int error = fsync_folder(hidden_); error != 0)
    throw IoError(system_message(hidden_, "cannot write to the disk (fsync)", error));
  if (fs().rename_new(content_.c_str(), target_.c_str()) != 0) {
    if (errno == EEXIST) throw exists_already(target_);
    throw IoError(system_message(target_, "cannot put the output in place (rename)", errno));
  }
  if (kind_ == Kind::File) fs().rmdir(hidden_.c_str());
  hidden_.clear();
  if (int error = fsync_folder(parent_); error != 0)
    throw IoError(system_message(
        target_, "is in place, but may not survive a power loss (fsync of the folder)", error));
}

}  // namespace lk
