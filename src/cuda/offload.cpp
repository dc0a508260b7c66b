// Copies of tensors in pinned host memory.
#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"
#include "cuda/side_copy.h"

namespace lk {

class CudaBackend::HostBlock final : public StoredCopy {
 public:
  HostBlock(CudaBackend& backend, const Tensor& x)
      : backend_(backend), copy_(backend), tag_(x.storage().tag()), bytes_(span(x)) {
    host_ = backend.host_cache_.allocate(bytes_);
    if (!host_)
      throw OutOfMemoryError(concat("no pinned host memory for ", bytes_, " bytes more; ",
                                    backend.offloaded().total().live_bytes >> 20,
                                    " MiB are offloaded"));
    backend.offload_ledger().allocated(tag_, bytes_);
    copy_.start({{{host_, x.raw(), bytes_}}});
  }
  ~HostBlock() override {
    copy_.join();  // the memory at both ends is about to get other users
    backend_.offload_ledger().freed(tag_, bytes_);
    backend_.host_cache_.release(host_);
  }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  void sent() override { cuda_check(copy_.join(), "waiting for a copy to the host"); }
  void fetch(const Tensor& to) override {
    check(span(to) == bytes_, "offload: ", bytes_, " bytes come back into ", to.shape());
    copy_.start({{{to.raw(), host_, bytes_}}});
  }
  void arrived() override { cuda_check(copy_.join(), "waiting for a copy from the host"); }

 private:
  // The bytes from the first to the last element, margins between rows included: one plain copy.
  static std::size_t span(const Tensor& x) {
    if (x.numel() == 0) return 0;
    return static_cast<std::size_t>((x.rows() - 1) * x.ld() + x.cols()) * dtype_size(x.dtype());
  }

  CudaBackend& backend_;
  SideCopy copy_;
  Tag tag_;  // what the copied tensor was for
  std::size_t bytes_;
  void* host_ = nullptr;
};

std::unique_ptr<StoredCopy> CudaBackend::offload(const Tensor& x) {
  return std::make_unique<HostBlock>(*this, x);
}

BlockCache CudaBackend::make_host_cache(int device) {
  auto allocate = [device](std::size_t bytes) -> void* {
    void* block = nullptr;
    if (cudaSetDevice(device) == cudaSuccess && cudaMallocHost(&block, bytes) == cudaSuccess)
      return block;
    cudaGetLastError();
    return nullptr;
  };
  return {allocate, [device](void* block, std::size_t) {
            cudaSetDevice(device);
            cudaFreeHost(block);
          }};
}

}  // namespace lk
