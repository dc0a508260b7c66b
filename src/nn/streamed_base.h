// StreamedBase: a frozen base that does not fit the device. The matrices of its first layers wait in
// pinned host memory, or divided among the devices of several processes, and are copied to the device one
// layer ahead of their use.
//
// Note [Streamed base]: a frozen weight never changes, so nothing is ever written back. The device has two
// slots, each as large as the largest of these layers, and the matrices of layer l are views into slot
// l % 2, at addresses that never change: what is made of a Weight once (joined projections, nodes of a
// tape) stays valid. A Weight asks for its layer whenever its numbers are asked for
// (tensor/weight_source.h). The first time, the next layer of the pass starts its way into the other slot,
// whose last readers were submitted before: it is copied while this layer computes.
//
//   forward   0  1  2 ... n-1        backward   n-1  n-2  n-3 ... 0
//
// The pass turns at both ends, where the slots hold the layer that comes next already: a micro-batch
// copies 2 (n - 2) layers, n >= 2. Any other order is as right, but a layer that was not expected is
// waited for.
//
// Processes that hold a base together (ShardGroup) have a part of each matrix each. As none ever writes to
// it, nobody waits for anybody: a process fetches a layer when it comes to it, whatever the others do.
//
// Products read dense and quantised matrices alike, as they do of a base that stays: not a bit differs.
// Norms and biases stay on the device. Work that streams can't be recorded (Backend::record), as what it
// has to copy depends on what ran before it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/model_weights.h"
#include "nn/streamed_layers.h"
#include "tensor/backend.h"

namespace lk {

// The processes that hold a base together.
struct ShardGroup {
  int rank = 0, size = 1;
  // What each process gives, by rank. They must all make the same calls in the same order.
  std::function<std::vector<std::string>(const std::string&)> gather = {};
};

class StreamedBase : public std::enable_shared_from_this<StreamedBase> {
 public:
  // For the first `layers` layers of a model, which wait on the host, or in the memory of `group`'s
  // devices if there is one. Create it as a shared_ptr, which the weights then hold. Throws UsageError if
  // the device has no memory apart from the host's.
  StreamedBase(Backend& backend, std::int64_t layers, std::optional<ShardGroup> group = {});

  // Whether the slot's weight is to wait elsewhere: a matrix of one of the layers.
  bool takes(const WeightSlot& slot) const { return is_streamed(slot, layers_asked_); }
  static bool is_streamed(const WeightSlot& slot, std::int64_t layers) {
    return slot.linear && slot.role != Role::Head && slot.layer < layers;
  }
  // Copies a weight of its own, as it was loaded, to where it waits and frees it on the device. It is
  // undefined until finish(). Throws OutOfMemoryError if there is no more memory to pin, or for a part.
  void take(const WeightSlot& slot);
  // Allocates the slots (Tag::Weights) and puts all weights that were taken back into their places. The
  // processes of a group do so together; none may end before all have done with the base.
  void finish();

  // Brings a layer into its slot for the work submitted from here on, and starts to fetch the next.
  void want(std::size_t layer);
  // How many layers were copied to the device, and how many of them only when they were wanted.
  std::int64_t fetched() const { return fetched_; }
  std::int64_t late() const { return late_; }

  // What the slots take if the matrices of each layer take so many bytes, roughly.
  static std::int64_t slot_bytes(const std::vector<std::int64_t>& layer_bytes);

 private:
  static constexpr std::size_t kSlots = 2;
  static constexpr std::size_t kNone = SIZE_MAX;
  // A dense matrix, or one plane of a quantised one.
  struct Part {
    std::unique_ptr<StoredCopy> copy = {};
    ShardedCopy* shard = nullptr;  // that copy, if processes hold it together
    std::size_t begin = 0;         // in the slot
    DType dtype = DType::U8;
    Shape shape;
    Tensor place = {};  // after finish()
  };
  // A weight between take() and finish().
  struct Taken {
    Weight* weight = nullptr;
    std::string name;
    Shape shape;
    DType dtype = DType::F32;
    std::optional<QuantisedMatrix> quantised;  // without planes
    // By plane; a dense one has the first.
    std::array<std::optional<std::size_t>, kPlanes> parts = {};
  };
  struct Layer final : WeightSource {
    StreamedBase* base = nullptr;
    std::size_t index = 0, bytes = 0;
    std::vector<Part> parts;
    std::vector<Taken> taken;
    void want() override { base->want(index); }
  };
  struct Slot {
    Tensor memory;
    std::size_t holds = kNone;  // the layer that is there, or on its way
    bool on_its_way = false;
  };

  std::size_t send(Layer& layer, const Tensor& x);
  void meet();
  void put_back(Layer& layer, const Taken& taken);
  void fetch(std::size_t layer);

  Backend& backend_;
  std::int64_t layers_asked_;
  std::optional<ShardGroup> group_;
  std::array<Slot, kSlots> slots_;
  std::deque<Layer> layers_;
  std::size_t newest_ = kNone;  // the layer wanted last
  std::int64_t fetched_ = 0, late_ = 0;
};

// Of a base some of whose layers wait elsewhere, in parts by the processes of `group`; null if none do.
std::shared_ptr<StreamedBase> make_streamed_base(Backend& backend, const StreamedLayers& layers,
                                                 const ShardGroup* group);
// Moves the first layers of a model that is on its device already to the host, or to the devices of a
// group: for tests and small bases.
std::shared_ptr<StreamedBase> stream_weights(Backend& backend, const ModelConfig& config,
                                             ModelWeights& weights, std::int64_t layers,
                                             std::optional<ShardGroup> group = {});
// Whether any of the weights is brought to the device when it is wanted.
bool is_streamed(const ModelWeights& weights);

}  // namespace lk
