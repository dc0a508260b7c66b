#include "io/paths.h"

#include <algorithm>
#include <filesystem>

#include "io/fs.h"
#include "tensor/error.h"

namespace lk {

namespace {

// Fills `s` by Fs::stat or Fs::lstat. Returns whether anything is there.
bool look(int (Fs::*call)(const char*, struct stat*), const std::string& path, struct stat& s) {
  if (retry_interrupted([&] { return (fs().*call)(path.c_str(), &s); }) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  if (errno == ELOOP) throw InputError(path + ": its links lead in a circle");
  throw IoError(system_message(path, "cannot examine", errno));
}

// Fills `s` with what `path` leads to.
bool follow(const std::string& path, struct stat& s) {
  if (look(&Fs::stat, path, s)) return true;
  if (look(&Fs::lstat, path, s) && S_ISLNK(s.st_mode))
    throw InputError(path + ": is a link to nothing");
  return false;
}

}  // namespace

bool exists(const std::string& path) {
  struct stat s {};
  return follow(path, s);
}

bool is_taken(const std::string& path) {
  struct stat s {};
  return look(&Fs::lstat, path, s);
}

bool is_link(const std::string& path) {
  struct stat s {};
  return look(&Fs::lstat, path, s) && S_ISLNK(s.st_mode);
}

bool is_folder(const std::string& path) {
  struct stat s {};
  return follow(path, s) && S_ISDIR(s.st_mode);
}

bool is_pipe(const std::string& path) {
  struct stat s {};
  return follow(path, s) && S_ISFIFO(s.st_mode);
}

bool is_same(const std::string& a, const std::string& b) {
  struct stat of_a {
  }, of_b{};
  return follow(a, of_a) && follow(b, of_b) && of_a.st_dev == of_b.st_dev &&
         of_a.st_ino == of_b.st_ino;
}

std::uint64_t file_bytes(const std::string& path) {
  struct stat s {};
  return follow(path, s) ? static_cast<std::uint64_t>(s.st_size) : 0;
}

std::vector<std::string> real_path_parts(const std::string& path) {
  std::string resolved;
  if (retry_interrupted([&] { return fs().realpath(path.c_str(), resolved); }) != 0)
    throw IoError(system_message(path, "cannot find the real path", errno));
  std::vector<std::string> parts;
  for (const auto& part : std::filesystem::path(resolved).relative_path())
    parts.push_back(part.string());
  return parts;
}

std::vector<std::string> list_folder(const std::string& path) {
  std::vector<std::string> names;
  if (retry_interrupted([&] { return fs().list(path.c_str(), names); }) != 0)
    throw IoError(system_message(path, "cannot list the folder", errno));
  std::sort(names.begin(), names.end());
  return names;
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

std::string parent_folder(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string folder_name(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).lexically_normal();
  const std::string name = folder.filename().string();
  return name.empty() ? folder.parent_path().filename().string() : name;
}

}  // namespace lk
