#include "lora/adapter.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "lora/adapter_io.h"
#include "lora/joined.h"
#include "lora/rank_patterns.h"

namespace lk {

namespace {

void check_numbers(const LoraShape& shape, const std::string& path) {
  require(std::isfinite(shape.alpha) && shape.alpha > 0, "alpha ", shape.alpha, " of ", path,
          ": must be positive");
  require(shape.dropout >= 0 && shape.dropout < 1, "dropout ", shape.dropout,
          ": must be in [0, 1)");
}

}  // namespace

Adapter::Adapter(Transformer& model, const LoraConfig& config) : model_(model), config_(config) {
  if (config_.targets.empty()) config_.targets = default_targets(model.config());
  const std::vector<std::string>& targets = config_.targets;
  for (std::int64_t layer : config.layers)
    require(layer >= 0 && layer < model.config().n_layers, "`layers` ", layer,
            ": the model has layers 0 to ", model.config().n_layers - 1);
  std::set<std::string> unmatched(targets.begin(), targets.end());
  std::uint32_t n_sites = 0;
  struct Chosen {
    std::string path;
    std::uint32_t site;
    std::unique_ptr<LinearMap>* map;
  };
  std::vector<Chosen> chosen;
  std::vector<std::string> names;  // all module names, for the message
  // Choose and check everything first, then change the model: a refused target leaves it unchanged.
  model.visit_sites(
      [&](const std::string& path, std::size_t layer, Site, std::unique_ptr<LinearMap>& map) {
        const std::uint32_t site = n_sites++;
        std::string name = path.substr(path.rfind('.') + 1);
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
        bool wanted = false;
        for (const std::string& t : targets) {
          if (!config_.selects(t, path, static_cast<std::int64_t>(layer))) continue;
          wanted = true;
          unmatched.erase(t);
        }
        if (!wanted) return;
        require(dynamic_cast<FrozenLinear*>(map.get()), path, " already carries an adapter");
        check_numbers(config.shape_of(path), path);
        const std::int64_t limit = std::min(map->in_features(), map->out_features());
        const std::int64_t rank = config.shape_of(path).rank;
        if (rank < 1 || (rank > limit && !config.wide_ranks))
          throw UsageError(concat(config.exceptions.count(path) ? "`rank_pattern` " : "`rank` ",
                                  rank, ": ", path, " allows 1 to ", limit));
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
  for (Chosen& c : chosen) {
    std::unique_ptr<FrozenLinear> base(static_cast<FrozenLinear*>(c.map->release()));
    auto lora =
        std::make_unique<LoraLinear>(model.backend(), c.path, c.site, std::move(base),
                                     config.shape_of(c.path), config.seed, model.compute_dtype());
    layers_.push_back(lora.get());
    places_.push_back(c.map);
    *c.map = std::move(lora);
  }
  initialise(model, layers_, config.init, config.seed);
}

Adapter::~Adapter() {
  model_.leave_joined();
  for (std::size_t i = 0; i < layers_.size(); ++i) *places_[i] = layers_[i]->release_base();
}

std::vector<Parameter*> Adapter::parameters() const {
  std::vector<Parameter*> p;
  for (LoraLinear* layer : layers_)
    for (Parameter* one : layer->parameters()) p.push_back(one);
  return p;
}

std::vector<Parameter*> Adapter::first_to_move() const {
  std::vector<Parameter*> p;
  for (LoraLinear* layer : layers_) p.push_back(&layer->b());
  return p;
}

std::vector<std::string> Adapter::target_modules() const {
  std::set<std::string> names;
  for (const LoraLinear* layer : layers_) {
    const std::string& path = layer->path();
    bool by_name = config_.targets.size() == 1 && config_.targets[0] == "all-linear";
    if (by_name) {
      names.insert(path.substr(path.rfind('.') + 1));
    } else {
      for (const std::string& t : config_.targets)
        if (target_matches(path, t)) names.insert(t);
    }
  }
  return {names.begin(), names.end()};
}

std::int64_t Adapter::copy_bytes() const {
  std::int64_t bytes = Method::copy_bytes();
  model_.visit_joined([&](const JoinedLinear& f) { bytes += f.copies.bytes(); });
  return bytes;
}

void Adapter::lay_out_for_training() {
  if (model_.backend().traits().joins_projections && model_.compute_dtype() == DType::BF16)
    join_projections(model_, *this);
}

void Adapter::save(const std::string& folder, const BaseIdentity& base) const {
  save_adapter(folder, *this, base.name, base.fingerprint);
}

void Adapter::set_enabled(bool enabled) {
  for (LoraLinear* layer : layers_) layer->set_enabled(enabled);
  model_.enable_joined(enabled);
}

std::vector<std::string> Adapter::untouched() const {
  std::vector<std::string> paths;
  for (LoraLinear* layer : layers_) {
    std::vector<double> b = to_host_f64(layer->b().value());
    if (std::all_of(b.begin(), b.end(), [](double v) { return v == 0; }))
      paths.push_back(layer->path());
  }
  return paths;
}

}  // namespace lk
