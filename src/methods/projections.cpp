#include "methods/projections.h"

#include <algorithm>
#include <set>

namespace lk {

bool names_module(const std::string& target, const std::string& path) {
  return path == target ||
         (!target.empty() && path.size() > target.size() && path.ends_with("." + target));
}

std::vector<ProjectionSite> find_projections(Transformer& model,
                                             const std::vector<std::string>& targets) {
  const bool all = targets == std::vector<std::string>{"all-linear"};
  std::set<std::string> unmatched;
  if (!all) unmatched.insert(targets.begin(), targets.end());
  std::vector<ProjectionSite> sites;
  std::vector<std::string> names;
  model.visit_sites(
      [&](const std::string& path, std::size_t, Site, std::unique_ptr<LinearMap>& map) {
        if (std::string name = path.substr(path.rfind('.') + 1);
            std::find(names.begin(), names.end(), name) == names.end())
          names.push_back(name);
        bool wanted = all;
        for (const std::string& target : targets)
          if (names_module(target, path)) wanted = true, unmatched.erase(target);
        if (!wanted) return;
        require(dynamic_cast<FrozenLinear*>(map.get()), path, " already carries an adapter");
        sites.push_back({path, &map});
      });
  if (unmatched.empty()) return sites;
  std::string known;
  for (const std::string& name : names) known += name + ", ";
  throw UsageError(concat("`targets`: '", *unmatched.begin(), "' matches no module; there are ",
                          known, "or all-linear"));
}

ProjectionMethod::~ProjectionMethod() {
  for (std::size_t i = 0; i < maps_.size(); ++i) *places_[i] = maps_[i]->release_base();
}

void ProjectionMethod::wrap(const std::vector<ProjectionSite>& sites, const Wrap& make) {
  for (const ProjectionSite& site : sites) {
    std::unique_ptr<FrozenLinear> base(static_cast<FrozenLinear*>(site.map->release()));
    std::unique_ptr<VectorLinear> map = make(site.path, std::move(base));
    maps_.push_back(map.get());
    places_.push_back(site.map);
    *site.map = std::move(map);
  }
}

std::vector<Parameter*> ProjectionMethod::parameters() const {
  std::vector<Parameter*> all;
  for (VectorLinear* map : maps_) all.push_back(&map->vector());
  return all;
}

std::vector<std::string> ProjectionMethod::listed(const std::vector<std::string>& targets) const {
  if (targets != std::vector<std::string>{"all-linear"}) return targets;
  std::set<std::string> names;
  for (const VectorLinear* map : maps_)
    names.insert(map->path().substr(map->path().rfind('.') + 1));
  return {names.begin(), names.end()};
}

void ProjectionMethod::set_enabled(bool enabled) {
  for (VectorLinear* map : maps_) map->set_enabled(enabled);
}

}  // namespace lk
