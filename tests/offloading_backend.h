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
  std::unique_ptr<HostCopy> offload(const Tensor& x) override {
    struct Late : HostCopy {
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
  int waiting = 0, most_waiting = 0, on_the_way = 0, most_on_the_way = 0, total = 0;
};

}  // namespace lk::test
