#include "tensor/plan_backend.h"

#include <cstring>

#include "tensor/fp8_product.h"

namespace lk {

PlanBackend::PlanBackend(const DeviceTraits& traits) : Backend(traits) {
  set_cache(std::make_unique<BlockCache>(
      [this](std::size_t bytes) -> void* {
        if (bytes > kMostBytes - next_) return nullptr;
        next_ += bytes;
        return reinterpret_cast<void*>(next_);
      },
      [](void*, std::size_t) {}));
}

PlanBackend::~PlanBackend() { release_cache(); }

void PlanBackend::download(void* dst, const Tensor&, std::size_t bytes) {
  std::memset(dst, 0, bytes);
}

bool PlanBackend::through_scratch(const Tensor& y, const Tensor& x, const Weight& w) {
  if (w.quantised()) quantised_forward(*this, y, x, w);
  return w.quantised() != nullptr;
}

bool PlanBackend::through_scratch(const Tensor& dx, GradMode mode, const Tensor& dy,
                                  const Weight& w) {
  if (w.quantised()) quantised_backward_x(*this, dx, mode, dy, w);
  return w.quantised() != nullptr;
}

std::unique_ptr<StoredCopy> PlanBackend::offload(const Tensor& x) {
  struct Counted final : StoredCopy {
    PlanBackend& backend;
    Tag tag;
    std::size_t bytes;
    Counted(PlanBackend& b, Tag t, std::size_t n) : backend(b), tag(t), bytes(n) {
      backend.offload_ledger().allocated(tag, bytes);
    }
    ~Counted() override { backend.offload_ledger().freed(tag, bytes); }
    void sent() override {}
    void fetch(const Tensor&) override {}
    void arrived() override {}
  };
  if (!traits().can_offload) return Backend::offload(x);
  const auto n = static_cast<std::size_t>((x.rows() - 1) * x.ld() + x.cols());
  return std::make_unique<Counted>(*this, x.storage().tag(), n * dtype_size(x.dtype()));
}

std::unique_ptr<ShardedCopy> PlanBackend::shard(const Tensor& x, int rank, int size) {
  struct Counted final : ShardedCopy {
    Tensor part;
    void sent() override {}
    void fetch(const Tensor&) override {}
    void arrived() override {}
    std::string name() override { return {}; }
    void open(std::span<const std::string>) override {}
  };
  if (!traits().can_offload) return Backend::shard(x, rank, size);
  auto counted = std::make_unique<Counted>();
  const ShardRange range = shard_range(x.bytes(), rank, size);
  if (range.size() > 0)
    counted->part = empty(Tag::Weights, DType::U8, {static_cast<std::int64_t>(range.size())});
  return counted;
}

}  // namespace lk
