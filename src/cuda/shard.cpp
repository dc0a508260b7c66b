// Tensors of which each process keeps a part on its GPU, where the others read it.
//
// A part is an allocation of its own, which the driver names for other processes (CUDA's interprocess
// communication) and maps into their address space. Its bytes never change once it has a name, so that
// nobody asks before reading: the copies go over NVLink or PCIe by the reader's copy engines, and the
// owner's kernels never hear of them.
#include <unistd.h>

#include <chrono>
#include <sstream>

#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"
#include "cuda/side_copy.h"

namespace lk {
namespace {

// What names memory of a process to others: "PROCESS ADDRESS HANDLE".
struct PartName {
  std::uint64_t process = 0;
  std::uintptr_t address = 0;
  cudaIpcMemHandle_t handle = {};
};

// Of this process alone: another container may have a process of the same number, but not since the same
// nanosecond.
std::uint64_t this_process() {
  static const auto since = std::chrono::system_clock::now().time_since_epoch().count();
  return static_cast<std::uint64_t>(since) ^ static_cast<std::uint64_t>(::getpid()) << 40;
}

std::string text_of(const PartName& name) {
  std::ostringstream text;
  text << name.process << ' ' << name.address << ' ';
  for (const char byte : name.handle.reserved) text << (byte & 0xff) << ',';
  return text.str();
}

PartName parse_name(const std::string& text) {
  PartName name;
  std::istringstream in(text);
  in >> name.process >> name.address;
  for (char& byte : name.handle.reserved) {
    int value = 0;
    char comma = 0;
    in >> value >> comma;
    byte = static_cast<char>(value);
  }
  check(!in.fail(), "a part of the base has no such name: ", text);
  return name;
}

}  // namespace

class CudaBackend::Shard final : public ShardedCopy {
 public:
  Shard(CudaBackend& backend, const Tensor& x, int rank, int size)
      : backend_(backend),
        copy_(backend),
        bytes_(x.bytes()),
        rank_(static_cast<std::size_t>(rank)),
        parts_(static_cast<std::size_t>(size)) {
    check(x.contiguous(), "shard: of a matrix with a row stride");
    const ShardRange own = range(rank_);
    if (own.size() == 0) return;
    part_ = backend.empty(Tag::Weights, DType::U8, {static_cast<std::int64_t>(own.size())});
    parts_[rank_].address = part_.raw();
    const auto* const from = static_cast<const std::byte*>(x.raw());
    copy_.start({{{part_.raw(), from + own.begin, own.size()}}});
  }
  ~Shard() override {
    copy_.join();
    cudaStreamSynchronize(backend_.side_stream_);  // it may read the parts that are closed now
    for (const Part& part : parts_)
      if (part.mapped) cudaIpcCloseMemHandle(part.address);
  }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  void sent() override { cuda_check(copy_.join(), "waiting for a part of the base"); }

  std::string name() override {
    backend_.synchronize();
    PartName name{this_process(), reinterpret_cast<std::uintptr_t>(part_ ? part_.raw() : nullptr)};
    if (part_)
      cuda_check(cudaIpcGetMemHandle(&name.handle, part_.raw()), "naming a part of the base");
    return text_of(name);
  }

  void open(std::span<const std::string> names) override {
    backend_.stream();  // makes the GPU current
    for (std::size_t r = 0; r < parts_.size(); ++r) {
      if (r == rank_ || range(r).size() == 0) continue;
      const PartName name = parse_name(names[r]);
      if (name.process == this_process()) {
        parts_[r].address = reinterpret_cast<void*>(name.address);
        continue;
      }
      const cudaError_t error =
          cudaIpcOpenMemHandle(&parts_[r].address, name.handle, cudaIpcMemLazyEnablePeerAccess);
      if (error != cudaSuccess) cudaGetLastError();
      require(error == cudaSuccess, "`shard_base`: ", backend_.name(),
              " can't read the memory of process ", r, "'s GPU: ", cudaGetErrorString(error));
      parts_[r].mapped = true;
    }
  }

  void fetch(const Tensor& to) override {
    check(to.contiguous() && to.bytes() == bytes_, "shard: ", bytes_, " bytes come back into ",
          to.shape());
    std::vector<SideCopy::Range> ranges;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      // Its own part first, then the next process's, so that not all read the same GPU at a time.
      const std::size_t r = (rank_ + i) % parts_.size();
      if (range(r).size() > 0)
        ranges.push_back({static_cast<std::byte*>(to.raw()) + range(r).begin, parts_[r].address,
                          range(r).size()});
    }
    copy_.start(ranges);
  }
  void arrived() override { cuda_check(copy_.join(), "waiting for a layer of the base"); }

 private:
  struct Part {
    void* address = nullptr;
    bool mapped = false;  // memory of another process
  };
  ShardRange range(std::size_t rank) const {
    return shard_range(bytes_, static_cast<int>(rank), static_cast<int>(parts_.size()));
  }

  CudaBackend& backend_;
  SideCopy copy_;
  std::size_t bytes_, rank_;
  Tensor part_;              // this process's own
  std::vector<Part> parts_;  // by rank
};

std::unique_ptr<ShardedCopy> CudaBackend::shard(const Tensor& x, int rank, int size) {
  return std::make_unique<Shard>(*this, x, rank, size);
}

}  // namespace lk
