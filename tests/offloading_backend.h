// A CPU that offloads to memory of its own, for tests of what only a GPU does in practice.
#pragma once

#include <cstring>

#include "cpu/cpu_backend_impl.h"
#include "cpu/traits.h"

namespace lk::test {

// Its copies happen as late as possible: out at sent(), back at arrived(). Until then the memory that is
// fetched into holds not-a-numbers.
class OffloadingBackend : public CpuBackend {
 public:
  OffloadingBackend() : CpuBackend(CpuMode::Reference, Products::Best, offloading()) {}
  static DeviceTraits offloading() {
    DeviceTraits traits = kCpuTraits;
    traits.can_offload = true;
    return traits;
  }
  std::unique_ptr<StoredCopy> offload(const Tensor& x) override {
    struct Late : StoredCopy {
      OffloadingBackend& owner;
      Tag tag;
      Tensor from;
      std::vector<std::byte> bytes;
      Tensor to;
      Late(OffloadingBackend& o, const Tensor& t)
          : owner(o), tag(t.storage().tag()), from(t), bytes(span(t)) {
        owner.offload_ledger().allocated(tag, bytes.size());
      }
      ~Late() override {
        owner.offload_ledger().freed(tag, bytes.size());
        --owner.waiting;
      }
      // From the first to the last element, margins between rows included.
      static std::size_t span(const Tensor& t) {
        return static_cast<std::size_t>((t.rows() - 1) * t.ld() + t.cols()) * dtype_size(t.dtype());
      }
      void sent() override {
        std::memcpy(bytes.data(), from.raw(), bytes.size());
        from = Tensor();
        owner.most_waiting = std::max(owner.most_waiting, ++owner.waiting);
      }
      void fetch(const Tensor& t) override {
        check(span(t) == bytes.size(), "fetch: of another size");
        to = t;
        std::memset(to.raw(), 0xff, bytes.size());
        ++owner.on_the_way;
        owner.most_on_the_way = std::max(owner.most_on_the_way, owner.on_the_way);
      }
      void arrived() override {
        std::memcpy(to.raw(), bytes.data(), bytes.size());
        to = Tensor();
        --owner.on_the_way;
        ++owner.total;
      }
    };
    return std::make_unique<Late>(*this, x);
  }
  // Parts of which others read from this process's memory, also as late as possible.
  std::unique_ptr<ShardedCopy> shard(const Tensor& x, int rank, int size) override {
    struct Part : ShardedCopy {
      OffloadingBackend& owner;
      Tensor from, own, to;
      std::size_t bytes;
      int rank;
      std::vector<const std::byte*> parts;
      Part(OffloadingBackend& o, const Tensor& x, int r, int n)
          : owner(o), from(x), bytes(x.bytes()), rank(r), parts(static_cast<std::size_t>(n)) {
        if (const auto size = static_cast<std::int64_t>(range(r).size()); size > 0)
          own = owner.empty(Tag::Weights, DType::U8, {size});
      }
      ShardRange range(int r) const {
        return shard_range(bytes, r, static_cast<int>(parts.size()));
      }
      void sent() override {
        if (own)
          std::memcpy(own.raw(), static_cast<const std::byte*>(from.raw()) + range(rank).begin,
                      own.bytes());
        from = Tensor();
      }
      std::string name() override {
        return std::to_string(reinterpret_cast<std::uintptr_t>(own ? own.raw() : nullptr));
      }
      void open(std::span<const std::string> names) override {
        for (std::size_t r = 0; r < parts.size(); ++r)
          parts[r] = reinterpret_cast<const std::byte*>(std::stoull(names[r]));
      }
      void fetch(const Tensor& t) override {
        check(t.bytes() == bytes, "fetch: of another size");
        to = t;
        std::memset(to.raw(), 0xff, bytes);
      }
      void arrived() override {
        for (int r = 0; r < static_cast<int>(parts.size()); ++r)
          if (const ShardRange part = range(r); part.size() > 0)
            std::memcpy(static_cast<std::byte*>(to.raw()) + part.begin,
                        parts[static_cast<std::size_t>(r)], part.size());
        to = Tensor();
      }
    };
    return std::make_unique<Part>(*this, x, rank, size);
  }
  int waiting = 0, most_waiting = 0, on_the_way = 0, most_on_the_way = 0, total = 0;
};

}  // namespace lk::test
