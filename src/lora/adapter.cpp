#include "lora/adapter.h"

#include <algorithm>
#include <set>

#include "lora/adapter_io.h"
#include "lora/choose_modules.h"
#include "lora/joined.h"
#include "lora/rank_patterns.h"

namespace lk {

Adapter::Adapter(Transformer& model, const LoraConfig& config) : model_(model), config_(config) {
  if (config_.targets.empty()) config_.targets = default_targets(model.config());
  // All layers are made, each on a copy of the handles to its weights, before the first takes its
  // place: what throws on the way leaves the model unchanged.
  std::vector<std::unique_ptr<LinearMap>> made;
  for (const ChosenModule& c : choose_modules(model, config_)) {
    auto base = std::make_unique<FrozenLinear>(static_cast<const FrozenLinear&>(**c.map));
    auto lora =
        std::make_unique<LoraLinear>(model.backend(), c.path, c.site, std::move(base),
                                     config.shape_of(c.path), config.seed, model.compute_dtype());
    layers_.push_back(lora.get());
    places_.push_back(c.map);
    made.push_back(std::move(lora));
  }
  for (std::size_t i = 0; i < made.size(); ++i) *places_[i] = std::move(made[i]);
  try {
    initialise(model, layers_, config.init, config.seed);
  } catch (...) {
    take_off();
    throw;
  }
}

void Adapter::take_off() noexcept {
  model_.leave_joined();
  for (std::size_t i = 0; i < layers_.size(); ++i) *places_[i] = layers_[i]->release_base();
}

Adapter::~Adapter() { take_off(); }

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
  save_adapter(folder, *this, base);
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
