#include "io/output_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "io/paths.h"
#include "io/temporary.h"
#include "tensor/error.h"

namespace lk {

namespace {

constexpr int kMostLockTries = 1000;  // at a lock file that other processes keep removing

std::string holder_of(int lock) {
  char digits[32] = {};
  ssize_t n = fs().pread(lock, digits, sizeof digits - 1, 0);
  std::string pid(digits, n > 0 ? static_cast<std::size_t>(n) : 0);
  pid = pid.substr(0, pid.find_first_not_of("0123456789"));
  return pid.empty() ? "another process" : "process " + pid;
}

}  // namespace

void make_folders(const std::filesystem::path& path) {
  if (path.empty() || is_folder(path.string())) return;
  if (const auto parent = path.parent_path(); parent != path) make_folders(parent);
  if (fs().mkdir(path.c_str(), 0777) != 0 && errno != EEXIST)
    throw IoError(system_message(path.string(), "cannot create the folder", errno));
}

std::string real_output_folder(const std::string& path) {
  const std::size_t last = path.find_last_not_of('/');
  const std::string name = last == std::string::npos ? path : path.substr(0, last + 1);
  if (name.empty()) throw UsageError("the output folder's name is empty");
  if (!is_link(name)) return name;
  std::string real;
  struct stat s {};
  if (fs().realpath(name.c_str(), real) != 0 || fs().stat(real.c_str(), &s) != 0 ||
      !S_ISDIR(s.st_mode))
    throw UsageError(name + ": is a link, and not to a folder");
  return real;
}

OutputFolder::OutputFolder(const std::string& path, bool must_be_empty, const std::string& if_full)
    : path_(real_output_folder(path)) {
  if (exists(path_) && !is_folder(path_)) throw UsageError(path_ + ": exists and is not a folder");
  made_ = !exists(path_);
  make_folders(path_);
  const bool created = lock();
  remove_abandoned(path_);
  if (!must_be_empty) return;
  const std::vector<std::string> names = contents();
  if (names.empty()) return;
  if (created) fs().unlink(file(".lock").c_str());
  throw UsageError(concat(path_, ": not empty (it has ", names[0], "): ", if_full));
}

// Returns whether the lock file is new.
bool OutputFolder::lock() {
  const std::string lock_path = file(".lock");
  auto open_lock = [&](int extra) {
    return retry_interrupted([&] {
      return fs().open(lock_path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | extra,
                       0666);
    });
  };
  for (int tries = 0; tries < kMostLockTries; ++tries) {
    int fd = open_lock(O_CREAT | O_EXCL);
    const bool created = fd >= 0;
    if (fd < 0 && errno == EEXIST) {
      fd = open_lock(0);
      if (fd < 0 && errno == ENOENT) continue;  // its holder has just removed it
    }
    if (fd < 0) throw IoError(system_message(lock_path, "cannot open", errno));
    lock_ = FileDescriptor(fd);
    if (retry_interrupted([&] { return fs().flock(fd, LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK)
        throw UsageError(
            concat(path_, ": in use by ", holder_of(fd), " (it holds ", lock_path, ")"));
      throw IoError(system_message(lock_path, "cannot lock", errno));
    }
    struct stat s {};
    if (fs().fstat(fd, &s) != 0) throw IoError(system_message(lock_path, "cannot examine", errno));
    if (s.st_nlink == 0)
      continue;  // the holder before us removed the file we hold: take the new one
    // The number is for the message of a second run; failing to write it is no reason to stop.
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (fs().ftruncate(fd, 0) == 0) (void)!fs().write(fd, pid.data(), pid.size());
    return created;
  }
  throw IoError(lock_path + ": cannot lock: other processes keep removing it");
}

std::vector<std::string> OutputFolder::contents() const {
  std::vector<std::string> names = list_folder(path_);
  std::erase(names, ".lock");
  return names;
}

OutputFolder::~OutputFolder() {
  if (lock_.is_open()) fs().unlink(file(".lock").c_str());
  if (made_) ::rmdir(path_.c_str());  // which only succeeds on an empty folder
}

std::string OutputFolder::file(const std::string& name) const {
  return (std::filesystem::path(path_) / name).string();
}

}  // namespace lk
