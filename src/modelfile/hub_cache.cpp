#include "modelfile/hub_cache.h"

#include "io/input_file.h"
#include "io/paths.h"
#include "modelfile/hub_name.h"

namespace lk {
namespace {

constexpr std::size_t kMostOfRef = 4096;  // a commit and a line feed

// A revision becomes a path below refs/ or snapshots/, and must stay there.
bool stays_below(const std::string& revision) {
  return !revision.empty() && revision.front() != '/' && revision.find("..") == revision.npos &&
         revision.find('\0') == revision.npos;
}

std::string without_space(std::string text) {
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  return text;
}

}  // namespace

std::string hub_cache_folder(const ReadVariable& variable) {
  const auto set = [&](const char* name) {
    const char* value = variable(name);
    const std::string text = value ? value : "";
    const char* home = text.starts_with("~/") ? variable("HOME") : nullptr;
    return home ? home + text.substr(1) : text;
  };
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const std::string folder = set(name); !folder.empty()) return folder;
  if (const std::string home = set("HF_HOME"); !home.empty()) return home + "/hub";
  if (const std::string cache = set("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/huggingface/hub";
  return set("HOME") + "/.cache/huggingface/hub";
}

std::optional<std::string> find_in_hub_cache(const std::string& cache, const std::string& name) {
  const std::size_t at = name.find('@');
  std::string repository = name.substr(0, at);
  const std::string revision = at == name.npos ? "main" : name.substr(at + 1);
  if (!is_hub_name(repository) || !stays_below(revision)) return std::nullopt;
  repository.replace(repository.find('/'), 1, "--");
  const std::string folder = cache + "/models--" + repository, ref = folder + "/refs/" + revision;
  const std::string commit =
      exists(ref) && !is_folder(ref) ? without_space(read_file(ref, kMostOfRef)) : revision;
  const std::string snapshot = folder + "/snapshots/" + commit;
  if (!stays_below(commit) || !exists(snapshot) || !is_folder(snapshot)) return std::nullopt;
  return snapshot;
}

std::string path_of_model(const std::string& path, const ReadVariable& variable) {
  if (exists(path)) return path;
  return find_in_hub_cache(hub_cache_folder(variable), path).value_or(path);
}

}  // namespace lk
