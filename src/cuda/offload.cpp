// Copies to pinned host memory and back on a stream of their own.
//
// Note [Side stream]: the copies of a step run concurrently with its kernels, tied to them by
// events. A copy begins after the work submitted before it; sent() and arrived() make the one
// ordered stream of Note [One stream] wait for the copy. So device memory may still be handed out
// again as soon as its last user was submitted, and under capture the side stream joins the
// recording by the first event and is joined back by the second. The copy back follows the copy out
// on the same side stream, and each copy into a slot of a streamed base (nn/streamed_base.h) those
// before it.
#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"

namespace lk {

class CudaBackend::HostBlock final : public HostCopy {
 public:
  HostBlock(CudaBackend& backend, const Tensor& x)
      : backend_(backend), tag_(x.storage().tag()), bytes_(span(x)) {
    backend.stream();  // makes the backend's GPU current
    cuda_check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
    host_ = backend.host_cache_.allocate(bytes_);
    if (!host_) {
      cudaEventDestroy(event_);
      throw OutOfMemoryError(concat("no pinned host memory for ", bytes_, " bytes more; ",
                                    backend.offloaded().total().live_bytes >> 20,
                                    " MiB are offloaded"));
    }
    backend.offload_ledger().allocated(tag_, bytes_);
    copy(host_, x.raw(), cudaMemcpyDeviceToHost);
  }
  ~HostBlock() override {
    join();  // the memory at both ends is about to get other users
    cudaEventDestroy(event_);
    backend_.offload_ledger().freed(tag_, bytes_);
    backend_.host_cache_.release(host_);
  }
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  void sent() override { cuda_check(join(), "waiting for a copy to the host"); }
  void fetch(const Tensor& to) override {
    check(span(to) == bytes_, "offload: ", bytes_, " bytes come back into ", to.shape());
    copy(to.raw(), host_, cudaMemcpyHostToDevice);
  }
  void arrived() override { cuda_check(join(), "waiting for a copy from the host"); }

 private:
  // The bytes from the first to the last element, margins between rows included: one plain copy.
  static std::size_t span(const Tensor& x) {
    if (x.numel() == 0) return 0;
    return static_cast<std::size_t>((x.rows() - 1) * x.ld() + x.cols()) * dtype_size(x.dtype());
  }
  void copy(void* to, const void* from, cudaMemcpyKind kind) {
    cudaStream_t main = backend_.stream(), side = backend_.side_stream_;
    cuda_check(cudaEventRecord(event_, main), "offloading");
    cuda_check(cudaStreamWaitEvent(side, event_, 0), "offloading");
    cuda_check(cudaMemcpyAsync(to, from, bytes_, kind, side), "offloading");
    cuda_check(cudaEventRecord(event_, side), "offloading");
    in_flight_ = true;
  }
  cudaError_t join() {
    if (!in_flight_) return cudaSuccess;
    in_flight_ = false;
    return cudaStreamWaitEvent(backend_.stream(), event_, 0);
  }

  CudaBackend& backend_;
  Tag tag_;  // what the copied tensor was for
  std::size_t bytes_;
  void* host_ = nullptr;
  cudaEvent_t event_ = nullptr;  // first marks the main stream's work, then the copy's end
  bool in_flight_ = false;
};

std::unique_ptr<HostCopy> CudaBackend::offload(const Tensor& x) {
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
