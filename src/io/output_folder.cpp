#include "io/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "io/paths.h"
#include "tensor/error.h"

namespace lk {

namespace {

void make_folders(const std::filesystem::path& path) {
  if (path.empty() || is_folder(path.string())) return;
  make_folders(path.parent_path());
  if (fs().mkdir(path.c_str(), 0777) != 0 && errno != EEXIST)
    throw IoError(system_message(path.string(), "cannot create the folder", errno));
}

std::string holder_of(int lock) {
  char digits[32] = {};
  ssize_t n = fs().pread(lock, digits, sizeof digits - 1, 0);
  std::string pid(digits, n > 0 ? static_cast<std::size_t>(n) : 0);
  pid = pid.substr(0, pid.find_first_not_of("0123456789"));
  return pid.empty() ? "another process" : "process " + pid;
}

}  // namespace

OutputFolder::OutputFolder(const std::string& path, bool must_be_empty) : path_(path) {
  if (path.empty()) throw UsageError("the output folder's name is empty");
  if (exists(path) && !is_folder(path)) throw UsageError(path + ": exists and is not a folder");
  std::filesystem::path folder(path);
  make_folders(folder.has_filename() ? folder : folder.parent_path());

  const std::string lock_path = file(".lock");
  bool created = false;
  for (;;) {
    auto open_lock = [&](int extra) {
      return retry_interrupted([&] {
        return fs().open(lock_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | extra,
                         0666);
      });
    };
    int fd = open_lock(O_CREAT | O_EXCL);
    created = fd >= 0;
    if (fd < 0 && errno == EEXIST) fd = open_lock(0);
    if (fd < 0 && errno == ENOENT) continue;  // its holder has just removed it
    if (fd < 0) throw IoError(system_message(lock_path, "cannot open", errno));
    lock_ = FileDescriptor(fd);
    if (retry_interrupted([&] { return fs().flock(fd, LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK)
        throw UsageError(
            concat(path, ": in use by ", holder_of(fd), " (it holds ", lock_path, ")"));
      throw IoError(system_message(lock_path, "cannot lock", errno));
    }
    struct stat s {};
    if (fs().fstat(fd, &s) != 0) throw IoError(system_message(lock_path, "cannot examine", errno));
    if (s.st_nlink > 0)
      break;  // else the holder before us removed the file we hold: take the new one
  }
  if (must_be_empty) {
    for (const std::string& name : list_folder(path)) {
      if (name == ".lock") continue;
      if (created) fs().unlink(lock_path.c_str());
      throw UsageError(concat(path, ": not empty (it has ", name, "): give a new or empty folder"));
    }
  }
  // The number is for the message of a second run; failing to write it is no reason to stop.
  std::string pid = std::to_string(::getpid()) + "\n";
  if (fs().ftruncate(lock_.get(), 0) == 0) (void)!fs().write(lock_.get(), pid.data(), pid.size());
}

OutputFolder::~OutputFolder() {
  if (lock_.is_open()) fs().unlink(file(".lock").c_str());
}

std::string OutputFolder::file(const std::string& name) const {
  return (std::filesystem::path(path_) / name).string();
}

}  // namespace lk
