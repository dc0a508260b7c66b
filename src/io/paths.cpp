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
  throw IoError(system_message(path, "cannot examine", errno));
}

}  // namespace

bool exists(const std::string& path) {
  struct stat s {};
  return look(&Fs::stat, path, s);
}

bool is_taken(const std::string& path) {
  struct stat s {};
  return look(&Fs::lstat, path, s);
}

bool is_folder(const std::string& path) {
  struct stat s {};
  return look(&Fs::stat, path, s) && S_ISDIR(s.st_mode);
}

std::uint64_t file_bytes(const std::string& path) {
  struct stat s {};
  return look(&Fs::stat, path, s) ? static_cast<std::uint64_t>(s.st_size) : 0;
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

std::string folder_name(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).lexically_normal();
  const std::string name = folder.filename().string();
  return name.empty() ? folder.parent_path().filename().string() : name;
}

}  // namespace lk
