#include "lora/choose_modules.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace lk {
namespace {

void check_numbers(const LoraShape& shape, const std::string& path) {
  require(std::isfinite(shape.alpha) && shape.alpha > 0, "alpha ", shape.alpha, " of ", path,
          ": must be positive");
  // The scale is computed with in float32.
  require(shape.rank < 1 || (shape.scale() >= std::numeric_limits<float>::min() &&
                             shape.scale() <= std::numeric_limits<float>::max()),
          "alpha ", shape.alpha, " of ", path, ": scales by ", shape.scale(),
          ", which float32 does not hold");
  require(shape.dropout >= 0 && shape.dropout < 1, "dropout ", shape.dropout,
          ": must be in [0, 1)");
}

}  // namespace

std::vector<ChosenModule> choose_modules(Transformer& model, const LoraConfig& config) {
  const std::vector<std::string>& targets = config.targets;
  const std::string init = lora_init_name(config.init);
  require(!config.shape.dora || !changes_base(config.init), "`init` ", init,
          " and DoRA: give one of the two, as PEFT has no way to save both for the base as it was");
  const bool all = targets.size() == 1 && targets[0] == "all-linear";
  require(all || std::find(targets.begin(), targets.end(), "all-linear") == targets.end(),
          "`targets`: all-linear stands alone, as it names every projection");
  for (std::int64_t layer : config.layers)
    require(layer >= 0 && layer < model.config().n_layers, "`layers` ", layer,
            ": the model has layers 0 to ", model.config().n_layers - 1);
  std::set<std::string> unmatched(targets.begin(), targets.end());
  std::uint32_t n_sites = 0;
  std::vector<ChosenModule> chosen;
  std::vector<std::string> names;  // all module names, for the message
  std::set<std::string> paths;
  // Choose and check everything first, then change the model: a refused target leaves it unchanged.
  model.visit_sites(
      [&](const std::string& path, std::size_t layer, Site, std::unique_ptr<LinearMap>& map) {
        const std::uint32_t site = n_sites++;
        paths.insert(path);
        std::string name = path.substr(path.rfind('.') + 1);
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
        bool wanted = false;
        for (const std::string& t : targets) {
          if (!config.selects(t, path, static_cast<std::int64_t>(layer))) continue;
          wanted = true;
          unmatched.erase(t);
        }
        if (!wanted) return;
        require(dynamic_cast<FrozenLinear*>(map.get()), path, " already carries an adapter");
        check_numbers(config.shape_of(path), path);
        const auto [narrow, wide] = std::minmax({map->in_features(), map->out_features()});
        const std::int64_t rank = config.shape_of(path).rank;
        const std::int64_t most = config.wide_ranks           ? std::int64_t{INT32_MAX}
                                  : changes_base(config.init) ? narrow
                                                              : wide;
        if (rank < 1 || rank > most)
          throw UsageError(concat(config.exceptions.count(path) ? "`rank_pattern` " : "`rank` ",
                                  rank, ": ", path, " allows 1 to ", most));
        chosen.push_back({path, site, &map});
      });
  if (!unmatched.empty()) {
    std::string known;
    for (const std::string& name : names) known += name + ", ";
    // The matrices of the vocabulary are no sites, whatever the family calls them.
    for (Role role : {Role::Embedding, Role::Head})
      if (target_matches(module_path(family_of(model.config()), role), *unmatched.begin()))
        throw UsageError(concat("`targets`: '", *unmatched.begin(),
                                "' is the model's vocabulary, which stays frozen: choose among ",
                                known, "or all-linear"));
    throw UsageError(concat("`targets`: '", *unmatched.begin(), "' matches no module",
                            config.layers.empty() ? "" : " of these `layers`", "; there are ",
                            known, "or all-linear"));
  }
  for (const auto& [path, own] : config.exceptions)
    require(paths.count(path), "LoraConfig::exceptions: ", path, " is no module of the model");
  return chosen;
}

}  // namespace lk
