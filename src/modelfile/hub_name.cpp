#include "modelfile/hub_name.h"

#include <algorithm>

#include "io/json.h"
#include "io/paths.h"
#include "modelfile/model_file.h"

namespace lk {
namespace {

constexpr std::size_t kMostLetters = 96;  // as huggingface_hub's validate_repo_id()

bool is_name_part(std::string_view part) {
  auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !part.empty() && plain(part.front()) && plain(part.back()) &&
         std::all_of(part.begin(), part.end(),
                     [&](char c) { return plain(c) || c == '-' || c == '.'; });
}

// The name in "https://huggingface.co/ORG/NAME" with or without more behind it; empty for others.
std::string name_in_url(const std::string& url) {
  for (const std::string_view host : {"https://huggingface.co/", "https://hf.co/"}) {
    if (!url.starts_with(host)) continue;
    std::string name = url.substr(host.size());
    if (const std::size_t slash = name.find('/'); slash != name.npos)
      name.resize(std::min(name.find_first_of("/?#", slash + 1), name.size()));
    return is_hub_name(name) ? name : "";
  }
  return is_hub_name(url) ? url : "";
}

// The name of the hub's cache that `path` lies in: ".../models--ORG--NAME/snapshots/REVISION".
std::string name_in_cache(const std::string& path) {
  constexpr std::string_view prefix = "models--";
  for (const std::string& part : real_path_parts(path)) {
    if (!part.starts_with(prefix)) continue;
    const std::size_t border = part.find("--", prefix.size());
    if (border == part.npos) continue;
    const std::string name =
        part.substr(prefix.size(), border - prefix.size()) + "/" + part.substr(border + 2);
    if (is_hub_name(name)) return name;
  }
  return "";
}

// Letters and digits, in lower case: what is left of a name in any spelling.
std::string bare(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) out += c;
    if (c >= 'A' && c <= 'Z') out += static_cast<char>(c + 32);
  }
  return out;
}

HubName name_of_gguf(const GgufFile& file) {
  for (const char* key : {"general.source.huggingface.repository", "general.source.repo_url",
                          "general.source.url", "general.repo_url"})
    if (std::string name = name_in_url(file.get_string_or(key, "")); !name.empty())
      return {name, key};
  const char* key = "general.base_model.0.repo_url";
  const std::string name = name_in_url(file.get_string_or(key, ""));
  const std::string own = bare(file.get_string_or("general.name", ""));
  const bool same =
      own.empty() || own == bare(name.substr(name.find('/') + 1)) || own == bare(name);
  return name.empty() || !same ? HubName{} : HubName{name, key};
}

}  // namespace

bool is_hub_name(const std::string& text) {
  const std::size_t slash = text.find('/');
  return slash != text.npos && text.size() <= kMostLetters && text.find("--") == text.npos &&
         text.find("..") == text.npos && is_name_part(text.substr(0, slash)) &&
         is_name_part(text.substr(slash + 1)) && !text.ends_with(".git") &&
         !text.ends_with(".gguf");
}

HubName hub_name(const ModelFile& model) {
  if (model.gguf()) return name_of_gguf(*model.gguf());
  if (std::string name = name_in_cache(model.path()); !name.empty())
    return {name, "the hub's cache"};
  const Json config = read_json(model.path() + "/config.json");
  if (!config.contains("_name_or_path") || !config["_name_or_path"].is_string()) return {};
  const std::string name = config["_name_or_path"].get<std::string>();
  return is_hub_name(name) ? HubName{name, "config.json: _name_or_path"} : HubName{};
}

}  // namespace lk
