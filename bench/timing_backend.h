// TimingBackend: a Backend that passes every op on to another one and measures how long it took.
//
// A model built on it computes the same bits: ops, shapes and order are the inner backend's, memory
// comes from it, and the ledger is kept here. Ops are bracketed by marks of the device's own clock,
// so there is no need to wait for a GPU. The time between two brackets is a gap: the device had no
// work. Where kernels are shorter than a launch, part of the launch is counted with the op.
// autograd/work.h defines how much work an op is.
#pragma once

#include <array>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "autograd/work.h"

namespace lk::bench {

// What the device achieved in this process: measured by roofline.h.
struct Roofs {
  double flops_per_second = 0, bytes_per_second = 0;
};

const char* family_name(OpFamily family);

struct FamilyTime {
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0, bytes = 0;
  double roof_seconds = 0;  // sum over calls of the longer of flops and bytes, each at its roof
};

struct Profile {
  std::array<FamilyTime, kFamilyCount> families{};
  double seconds = 0;       // from start() to finish(), on the device's clock
  double busy_seconds = 0;  // sum over families; the rest of `seconds` is gaps
};
// One line for each family that was called: ms, share of the step, share of its own roof. Then the
// gaps.
std::string profile_table(const Profile& profile);

class TimingBackend final : public Backend {
 public:
  // `inner` must outlive this backend, and this backend must outlive every Tensor made on it. A
  // product with the memory of `head` counts as Head.
  TimingBackend(Backend& inner, const Roofs& roofs, const Weight& head);
  ~TimingBackend() override;

  // Ops are recorded from start() to finish(), which waits for the device.
  void start();
  Profile finish();

  std::string name() const override { return inner_.name(); }
  std::string description() const override { return inner_.description(); }
  std::unique_ptr<Readback> read_later(const Tensor& scalar) override {
    return inner_.read_later(scalar);
  }
  std::unique_ptr<Recording> record(const std::function<void()>&, const Recording*) override {
    return nullptr;  // ops are timed one by one
  }
  std::unique_ptr<StoredCopy> offload(const Tensor& x) override { return inner_.offload(x); }
  std::unique_ptr<ShardedCopy> shard(const Tensor& x, int rank, int size) override {
    return inner_.shard(x, rank, size);
  }
  // The kernels of these interfaces are timed as wholes, also where the inner backend composes
  // them.
  LoraKernels* lora_kernels() override;  // null if the inner backend has none
  CacheKernels* cache_kernels() override;
  AdapterKernels* adapter_kernels() override;
  SharedKeyKernels* shared_key_kernels() override;
  DoraKernels* dora_kernels() override;
  QuantisedKernels* quantised_kernels() override;
  SliceKernels* slice_kernels() override;
  bool keeps_quantised(const GgmlType& type) const override { return inner_.keeps_quantised(type); }
  std::int64_t free_memory() const override;
  void upload(const Tensor& dst, const void* src, std::size_t bytes) override;
  void download(void* dst, const Tensor& src, std::size_t bytes) override;
  void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) override {
    inner_.upload_made(dst, unit_bytes, make);
  }
  void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) override {
    inner_.look_at(src, unit_bytes, look);
  }
  void synchronize() override { inner_.synchronize(); }
  std::unique_ptr<DeviceClock> make_clock() override { return inner_.make_clock(); }
  void prepare_linear(Weight& w) override { inner_.prepare_linear(w); }
#define LK_TIMED(op, parameters, arguments)                                        \
  void op parameters override {                                                    \
    timed(work::op arguments, reads_head arguments, [&] { inner_.op arguments; }); \
  }
  LK_BACKEND_OPS(LK_TIMED)
#undef LK_TIMED

 private:
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;
  void column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                   const Tensor& mean, const Tensor& rstd) override;
  void sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                      const Tensor& ids) override;
  class Lora;
  class Cache;
  class Adapters;
  class SharedKeyTimes;
  class DoraTimes;
  class QuantisedTimes;
  class SliceTimes;
  // Runs op() between two marks and records it. Ops inside it (a backend may use its own ops) count
  // as part of it. A frozen product with the head's weight is recorded as Head.
  template <class Op>
  void timed(const Work& work, bool of_head, Op&& op) {
    const bool note = recording_ && depth_ == 0;
    if (note) {
      calls_.push_back(work);
      if (of_head && work.family == OpFamily::BaseLinear) calls_.back().family = OpFamily::Head;
      clock_->mark();
    }
    ++depth_;
    op();
    --depth_;
    if (note) clock_->mark();
  }
  static const void* memory_of(const Weight& w) {
    return w.quantised() ? (*w.quantised())[Plane::Codes].raw() : w.values().raw();
  }
  // Whether one of an op's arguments is the weight with the head's memory.
  template <class... Arguments>
  bool reads_head(const Arguments&... arguments) const {
    return (is_head(arguments) || ...);
  }
  template <class Argument>
  bool is_head(const Argument& argument) const {
    if constexpr (std::is_same_v<Argument, Weight>)
      return argument.defined() && memory_of(argument) == head_;
    else
      return false;
  }

  Backend& inner_;
  std::unique_ptr<Lora> lora_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<Adapters> adapters_;
  std::unique_ptr<SharedKeyTimes> shared_keys_;
  std::unique_ptr<DoraTimes> dora_;
  std::unique_ptr<QuantisedTimes> quantised_;
  std::unique_ptr<SliceTimes> slices_;
  Roofs roofs_;
  const void* head_;
  std::unordered_map<void*, Tensor> blocks_;  // the cache's blocks, in the inner backend's memory
  std::unique_ptr<DeviceClock> clock_;
  std::vector<Work> calls_;
  bool recording_ = false;
  int depth_ = 0;
};

}  // namespace lk::bench
