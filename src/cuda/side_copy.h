// Copies to other memory and back on a stream of their own.
//
// Note [Side stream]: the copies of a step run concurrently with its kernels, tied to them by
// events. A copy begins after the work submitted before it; join() makes the one ordered stream of
// Note [One stream] wait for it. So device memory may still be handed out again as soon as its last
// user was submitted. Under capture the side stream joins the recording where the event is recorded
// for the copy's beginning, and is joined back where it is recorded for its end. A copy back follows
// the copy out on the same side stream, and each copy into a slot of a streamed base
// (nn/streamed_base.h) those before it.
#pragma once

#include <span>

#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"

namespace lk {

class CudaBackend::SideCopy {
 public:
  // From and to device memory, of this GPU or another, or pinned host memory.
  struct Range {
    void* to = nullptr;
    const void* from = nullptr;
    std::size_t bytes = 0;
  };

  explicit SideCopy(CudaBackend& backend) : backend_(backend) {
    backend.stream();  // makes the backend's GPU current
    cuda_check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
  }
  ~SideCopy() { cudaEventDestroy(event_); }
  SideCopy(const SideCopy&) = delete;
  SideCopy& operator=(const SideCopy&) = delete;

  // Starts all of them, one after the other.
  void start(std::span<const Range> ranges) {
    cudaStream_t main = backend_.stream(), side = backend_.side_stream_;
    cuda_check(cudaEventRecord(event_, main), "a copy beside the work");
    cuda_check(cudaStreamWaitEvent(side, event_, 0), "a copy beside the work");
    for (const Range& r : ranges)
      cuda_check(cudaMemcpyAsync(r.to, r.from, r.bytes, cudaMemcpyDefault, side),
                 "a copy beside the work");
    cuda_check(cudaEventRecord(event_, side), "a copy beside the work");
    in_flight_ = true;
  }
  // Work submitted from here on finds the last start() done.
  cudaError_t join() {
    if (!in_flight_) return cudaSuccess;
    in_flight_ = false;
    return cudaStreamWaitEvent(backend_.stream(), event_, 0);
  }

 private:
  CudaBackend& backend_;
  cudaEvent_t event_ = nullptr;  // first marks the main stream's work, then the copy's end
  bool in_flight_ = false;
};

}  // namespace lk
