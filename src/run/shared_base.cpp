#include "run/shared_base.h"

namespace lk {
namespace {

// A projection that prepare_for_training() moved lies between factors that are gone: gives it
// memory without them.
void move_out(Backend& backend, Weight& w) {
  if (!w.defined() || w.source() || w.quantised() || w.values().contiguous()) return;
  const Tensor own = backend.empty(Tag::Weights, w.values().dtype(), w.values().shape());
  backend.copy(own, w.values());
  w = Weight(w.name(), own);
}

}  // namespace

SharedBase::Counts SharedBase::begin_run() {
  backend->trim();
  backend->reset_peaks();
  return {backend->ledger()[Tag::Gradients].total_count, backend->cache().driver_allocations()};
}

void SharedBase::load(std::shared_ptr<const ModelFile> model, DType dtype, const BaseStorage& how,
                      bool hash, const ShardGroup* group) {
  file = std::move(model);
  fingerprint = std::make_unique<Fingerprint>(*file);  // hashes during all that follows
  storage = how;
  loaded = load_weights(*backend, *file, dtype, {.storage = how, .group = group, .hash = hash});
}

void SharedBase::take_back(const Transformer* model) noexcept {
  if (!loaded || (!model && loaded->weights.embedding.defined())) return;  // they are here
  try {
    check(model != nullptr, "the base's weights were lost with their run");
    loaded->weights = model->weights();
    for (LayerWeights& layer : loaded->weights.layers)
      for (Projection& projection : layer.projections) move_out(*backend, projection.weight);
  } catch (const std::exception&) {
    loaded.reset();
  }
}

}  // namespace lk
