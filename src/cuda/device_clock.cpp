// The GPU's clock: events on the backend's one stream. They are kept for the next reading, as
// making an event costs more than recording it.
#include "tensor/device_clock.h"

#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"

namespace lk {
namespace {

class EventClock final : public DeviceClock {
 public:
  EventClock(const CudaBackend& backend, int device) : backend_(backend), device_(device) {}
  ~EventClock() override {
    cudaSetDevice(device_);
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  EventClock(const EventClock&) = delete;
  EventClock& operator=(const EventClock&) = delete;

  void mark() override {
    cuda_check(cudaSetDevice(device_), "selecting the GPU");
    if (n_marks_ == events_.size()) {
      events_.push_back(nullptr);
      cuda_check(cudaEventCreate(&events_.back()), "creating an event");
    }
    cuda_check(cudaEventRecord(events_[n_marks_], backend_.stream()), "recording an event");
    ++n_marks_;
  }

  std::vector<double> read() override {
    std::vector<double> seconds(n_marks_);
    if (n_marks_ > 0) backend_.wait_for(events_[n_marks_ - 1], "waiting for the GPU");
    for (std::size_t i = 0; i < n_marks_; ++i) {
      float ms = 0;
      cuda_check(cudaEventElapsedTime(&ms, events_[0], events_[i]), "reading an event");
      seconds[i] = static_cast<double>(ms) * 1e-3;
    }
    n_marks_ = 0;
    return seconds;
  }

 private:
  const CudaBackend& backend_;
  int device_;
  std::vector<cudaEvent_t> events_;
  std::size_t n_marks_ = 0;
};

}  // namespace

std::unique_ptr<DeviceClock> CudaBackend::make_clock() {
  return std::make_unique<EventClock>(*this, device_);
}

}  // namespace lk
