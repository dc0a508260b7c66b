#include "lora/lora_config.h"

#include <algorithm>

#include "nn/family.h"

namespace lk {

bool target_matches(const std::string& path, const std::string& target) {
  if (path == target) return true;
  return !target.empty() && path.size() > target.size() && path.ends_with(target) &&
         path[path.size() - target.size() - 1] == '.';
}

std::vector<std::string> default_targets(const ModelConfig& config) {
  const Family& family = family_of(config);
  std::vector<std::string> names;
  for (Role role : config.joined_qkv ? std::vector{Role::Qkv} : std::vector{Role::Q, Role::V}) {
    const std::string path = module_path(family, role);
    names.push_back(path.substr(path.rfind('.') + 1));
  }
  return names;
}

bool LoraConfig::selects(const std::string& target, const std::string& path,
                         std::int64_t layer) const {
  if (path == target) return true;
  const bool here =
      layers.empty() || std::find(layers.begin(), layers.end(), layer) != layers.end();
  return here && ((targets.size() == 1 && target == "all-linear") || target_matches(path, target));
}

LoraShape LoraConfig::shape_of(const std::string& path) const {
  LoraShape own = shape;
  if (auto found = exceptions.find(path); found != exceptions.end()) {
    own.rank = found->second.rank;
    own.alpha = found->second.alpha;
  }
  return own;
}

}  // namespace lk
