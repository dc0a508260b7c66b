#include "io/temporary.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::string_view kSuffix = ".lorikeet.tmp";
constexpr std::size_t kLongestName =
    200;  // file systems take 255 bytes, suffix and numbers included

std::string hidden_beside(const std::string& path, const std::string& numbers) {
  const std::filesystem::path p(path);
  const std::string name = "." + p.filename().string().substr(0, kLongestName) + numbers;
  return (p.parent_path() / (name + std::string(kSuffix))).string();
}

bool is_temporary(std::string_view name) {
  return name.starts_with('.') && name.ends_with(kSuffix) && name.size() > kSuffix.size();
}

// Network file systems lock only what is open for writing, which a folder can't be.
FileDescriptor open_to_lock(const std::string& path) {
  auto open = [&](int mode) {
    return FileDescriptor(retry_interrupted([&] {
      return fs().open(path.c_str(), mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
    }));
  };
  FileDescriptor fd = open(O_RDWR);
  if (!fd.is_open() && errno == EISDIR) fd = open(O_RDONLY);
  return fd;
}

int try_lock(const FileDescriptor& fd) {
  return retry_interrupted([&] { return fs().flock(fd.get(), LOCK_EX | LOCK_NB); });
}

bool has_no_locks(int error) {
  return error == ENOLCK || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL ||
         error == EBADF;
}

}  // namespace

std::string unique_temporary(const std::string& path) {
  static std::atomic<unsigned> counter{0};
  return hidden_beside(path, concat(".", ::getpid(), "-", counter++));
}

std::string shared_temporary(const std::string& path) { return hidden_beside(path, ""); }

Hold hold_temporary(const std::string& path, bool is_new, FileDescriptor& lock) {
  auto fail = [&](const char* what) { return IoError(system_message(path, what, errno)); };
  FileDescriptor fd = open_to_lock(path);
  if (!fd.is_open()) {
    if (errno == ENOENT) return Hold::Gone;
    throw fail("cannot open");
  }
  if (try_lock(fd) != 0) {
    if (errno == EWOULDBLOCK) return Hold::Taken;
    if (!has_no_locks(errno)) throw fail("cannot lock");
    if (!is_new)
      throw IoError(path +
                    ": exists, and its file system has no locks to tell whether its maker "
                    "lives: remove it if nothing writes there");
  }
  // Whoever held it before may have removed it between our open and our lock.
  struct stat ours {
  }, there{};
  if (fs().fstat(fd.get(), &ours) != 0) throw fail("cannot examine");
  if (retry_interrupted([&] { return fs().lstat(path.c_str(), &there); }) != 0) {
    if (errno == ENOENT) return Hold::Gone;
    throw fail("cannot examine");
  }
  if (ours.st_dev != there.st_dev || ours.st_ino != there.st_ino) return Hold::Gone;
  lock = std::move(fd);
  return Hold::Held;
}

void empty_temporary_folder(const std::string& path) {
  std::vector<std::string> names;
  if (fs().list(path.c_str(), names) != 0) return;
  for (const std::string& name : names) {
    const std::string inner = path + "/" + name;
    if (fs().unlink(inner.c_str()) == 0 || (errno != EISDIR && errno != EPERM)) continue;
    empty_temporary_folder(inner);
    fs().rmdir(inner.c_str());
  }
}

void remove_abandoned(const std::string& folder) {
  std::vector<std::string> names;
  if (fs().list(folder.empty() ? "." : folder.c_str(), names) != 0) return;
  for (const std::string& name : names) {
    if (!is_temporary(name)) continue;
    const std::string path = (std::filesystem::path(folder) / name).string();
    const FileDescriptor fd = open_to_lock(path);
    struct stat s {};
    if (!fd.is_open() || try_lock(fd) != 0 || fs().fstat(fd.get(), &s) != 0) continue;
    if (s.st_uid != ::geteuid()) continue;  // another user's
    if (S_ISDIR(s.st_mode)) {
      empty_temporary_folder(path);
      fs().rmdir(path.c_str());
    } else if (S_ISREG(s.st_mode)) {
      fs().unlink(path.c_str());
    }
  }
}

}  // namespace lk
