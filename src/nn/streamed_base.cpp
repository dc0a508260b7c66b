#include "nn/streamed_base.h"

#include <algorithm>
#include <sstream>

namespace lk {
namespace {

constexpr std::size_t kAlignment = 256;  // as the allocator's: kernels and cuBLAS see no difference

std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::shared_ptr<StreamedBase> make_streamed_base(Backend& backend, const StreamedLayers& layers,
                                                 const ShardGroup* group) {
  require_streamable(layers, backend);
  if (!layers) return nullptr;
  if (layers.on_host()) return std::make_shared<StreamedBase>(backend, layers.count);
  require(group != nullptr && group->size > 1,
          "`shard_base`: is for several processes (`processes`)");
  return std::make_shared<StreamedBase>(backend, layers.count, *group);
}

StreamedBase::StreamedBase(Backend& backend, std::int64_t layers, std::optional<ShardGroup> group)
    : backend_(backend), layers_asked_(layers), group_(std::move(group)) {
  check(layers > 0, "StreamedBase: of no layers");
  require_streamable({layers, group_.has_value()}, backend);
}

std::size_t StreamedBase::send(Layer& layer, const Tensor& x) {
  Part part{.begin = layer.bytes, .dtype = x.dtype(), .shape = x.shape()};
  if (group_) {
    std::unique_ptr<ShardedCopy> shard = backend_.shard(x, group_->rank, group_->size);
    part.shard = shard.get();
    part.copy = std::move(shard);
  } else {
    part.copy = backend_.offload(x);
  }
  part.copy->sent();
  layer.parts.push_back(std::move(part));
  layer.bytes += aligned(x.bytes());
  return layer.parts.size() - 1;
}

void StreamedBase::take(const WeightSlot& slot) {
  check(takes(slot) && slot.weight->defined() && !slots_[0].memory, "StreamedBase: ", slot.name,
        " is not to be taken");
  while (std::ssize(layers_) <= slot.layer) {
    Layer& layer = layers_.emplace_back();
    layer.base = this, layer.index = layers_.size() - 1;
  }
  Layer& layer = layers_[static_cast<std::size_t>(slot.layer)];
  const Weight& w = *slot.weight;
  Taken taken{slot.weight, slot.name, slot.shape, w.dtype(), std::nullopt};
  if (const QuantisedMatrix* q = w.quantised()) {
    taken.quantised = QuantisedMatrix{q->format, q->offset, {}};
    for (std::size_t p = 0; p < kPlanes; ++p)
      if (q->planes[p]) taken.parts[p] = send(layer, q->planes[p]);
  } else {
    taken.parts[0] = send(layer, w.values());
  }
  *slot.weight = Weight();
  layer.taken.push_back(std::move(taken));
}

void StreamedBase::put_back(Layer& layer, const Taken& taken) {
  auto place = [&](std::size_t part) { return layer.parts[part].place; };
  if (taken.quantised) {
    QuantisedMatrix q = *taken.quantised;
    for (std::size_t p = 0; p < kPlanes; ++p)
      if (taken.parts[p]) q.planes[p] = place(*taken.parts[p]);
    *taken.weight = Weight(taken.name, std::move(q), taken.shape, taken.dtype);
  } else {
    *taken.weight = Weight(taken.name, place(*taken.parts[0]));
  }
  taken.weight->set_source({shared_from_this(), &layer});
}

void StreamedBase::finish() {
  check(!layers_.empty() && !slots_[0].memory, "StreamedBase: nothing to finish");
  backend_.trim();  // what the taken weights had is of other sizes than the slots
  if (group_) meet();
  std::size_t largest = 0;
  for (const Layer& layer : layers_) largest = std::max(largest, layer.bytes);
  for (std::size_t i = 0; i < std::min(kSlots, layers_.size()); ++i)
    slots_[i].memory =
        backend_.empty(Tag::Weights, DType::U8, {static_cast<std::int64_t>(largest)});
  for (Layer& layer : layers_) {
    const Tensor& memory = slots_[layer.index % kSlots].memory;
    for (Part& part : layer.parts) part.place = memory.at(part.begin, part.dtype, part.shape);
    for (const Taken& taken : layer.taken) put_back(layer, taken);
    layer.taken.clear();
  }
}

// Tells the other processes how this one's parts are found, and finds theirs.
void StreamedBase::meet() {
  const auto each_shard = [this](const auto& f) {
    for (const Layer& layer : layers_)
      for (const Part& part : layer.parts) f(*part.shard);
  };
  std::string own;
  each_shard([&](ShardedCopy& shard) { own += shard.name() + '\n'; });
  std::vector<std::istringstream> all;
  for (const std::string& text : group_->gather(own)) all.emplace_back(text);
  std::vector<std::string> names(all.size());
  each_shard([&](ShardedCopy& shard) {
    for (std::size_t r = 0; r < all.size(); ++r)
      require(bool(std::getline(all[r], names[r])), "`shard_base`: process ", r,
              " has another base, or has it in parts of other layers");
    shard.open(names);
  });
}

// Starts a layer's way into its slot unless it is there or on it.
void StreamedBase::fetch(std::size_t layer) {
  Slot& slot = slots_[layer % kSlots];
  if (slot.holds == layer) return;
  for (Part& part : layers_[layer].parts) part.copy->fetch(part.place);
  slot.holds = layer;
  slot.on_its_way = true;
  ++fetched_;
}

void StreamedBase::want(std::size_t layer) {
  if (layer == newest_) return;
  Slot& slot = slots_[layer % kSlots];
  late_ += slot.holds != layer;
  fetch(layer);
  if (slot.on_its_way)
    for (Part& part : layers_[layer].parts) part.copy->arrived();
  slot.on_its_way = false;
  const bool up = layer == 0 || (layer + 1 < layers_.size() && layer > newest_);
  newest_ = layer;
  if (const std::size_t next = up ? layer + 1 : layer - 1; next < layers_.size()) fetch(next);
}

std::int64_t StreamedBase::slot_bytes(const std::vector<std::int64_t>& layer_bytes) {
  if (layer_bytes.empty()) return 0;
  return *std::max_element(layer_bytes.begin(), layer_bytes.end()) *
         static_cast<std::int64_t>(std::min(kSlots, layer_bytes.size()));
}

std::shared_ptr<StreamedBase> stream_weights(Backend& backend, const ModelConfig& config,
                                             ModelWeights& weights, std::int64_t layers,
                                             std::optional<ShardGroup> group) {
  auto base = std::make_shared<StreamedBase>(backend, layers, std::move(group));
  for (const WeightSlot& slot : weight_slots(config, weights))
    if (base->takes(slot)) base->take(slot);
  base->finish();
  backend.reset_peaks();
  return base;
}

bool is_streamed(const ModelWeights& weights) {
  bool any = false;
  visit_weights(weights, [&](const Weight& w) { any = any || w.source(); });
  return any;
}

}  // namespace lk
