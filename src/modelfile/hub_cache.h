// The Hugging Face hub's cache on this machine: models by the names that they have on the hub.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace lk {

// A variable of the process's environment: null if it is not set.
using ReadVariable = std::function<const char*(const char* name)>;

// The cache's folder: $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub or
// ~/.cache/huggingface/hub, the first whose variable is set, as huggingface_hub has it; ~/ at its beginning is $HOME.
std::string hub_cache_folder(const ReadVariable& variable);

// The folder of "ORG/NAME" or "ORG/NAME@REVISION" in the cache `cache`: models--ORG--NAME/snapshots/COMMIT, where a revision
// is a commit, or a branch or tag of which refs/ tells the commit, main by default. Nothing if `name` is no such name or
// the cache has not this revision; nothing is fetched. Throws IoError.
std::optional<std::string> find_in_hub_cache(const std::string& cache, const std::string& name);

// What to open for the text of a flag: `path` itself if it is there, or else its folder in the cache if it is a name
// that the cache has; `path` otherwise.
std::string path_of_model(const std::string& path, const ReadVariable& variable);

}  // namespace lk
