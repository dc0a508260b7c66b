// Moves large tensors between host and device: all threads of the host work, and the only copy is
// the one over the link.
//
// Note [Lanes]: each thread has two pinned buffers. It fills one while the other travels, and fills
// it again only when an event says that its copy has left. The copies go to the one stream in
// whatever order the threads come; they touch different bytes, and work submitted after the call
// finds all of them done.
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"
#include "tensor/parts.h"

namespace lk {

class CudaBackend::Lanes {
 public:
  struct Lane {
    std::byte* host = nullptr;
    cudaEvent_t done = nullptr;
  };
  Lanes(int threads, std::size_t bytes)
      : bytes_(bytes),
        lanes_(static_cast<std::size_t>(2 * threads)),
        turn_(static_cast<std::size_t>(threads)) {
    void* all = nullptr;
    cuda_check(cudaMallocHost(&all, bytes * lanes_.size()), "allocating pinned host memory");
    host_ = static_cast<std::byte*>(all);
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      lanes_[i].host = host_ + i * bytes;
      cuda_check(cudaEventCreateWithFlags(&lanes_[i].done, cudaEventDisableTiming),
                 "creating an event");
    }
  }
  ~Lanes() {
    for (Lane& lane : lanes_)
      if (lane.done) {
        cudaEventSynchronize(lane.done);
        cudaEventDestroy(lane.done);
      }
    cudaFreeHost(host_);
  }
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;

  bool suffice(int threads, std::size_t bytes) const {
    return static_cast<std::size_t>(threads) <= turn_.size() && bytes <= bytes_;
  }
  // A lane of the calling thread that is free to be written.
  Lane& next() {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    turn_[thread] ^= 1;
    Lane& lane = lanes_[2 * thread + turn_[thread]];
    cuda_check(cudaEventSynchronize(lane.done), "waiting for a copy");
    return lane;
  }

 private:
  std::size_t bytes_;
  std::vector<Lane> lanes_;
  std::vector<std::uint8_t> turn_;
  std::byte* host_ = nullptr;
};

CudaBackend::Lanes& CudaBackend::lanes(std::size_t bytes) {
  settle();  // the threads' own waits have no guard
  const int threads = part_threads();
  if (!lanes_ || !lanes_->suffice(threads, bytes)) {
    lanes_.reset();
    lanes_ = std::make_shared<Lanes>(threads, bytes);
  }
  return *lanes_;
}

void CudaBackend::upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) {
  const std::int64_t n = check_units("upload_made", dst, unit_bytes);
  const std::int64_t step = units_per_part(unit_bytes);
  stream();  // makes the backend's GPU current
  Lanes& all = lanes(static_cast<std::size_t>(step) * unit_bytes);
  for_parts(n, step, [&](std::int64_t first, std::int64_t last) {
    cudaStream_t s = stream();  // makes the GPU current for this thread too
    Lanes::Lane& lane = all.next();
    make(first, last, lane.host);
    const std::size_t at = static_cast<std::size_t>(first) * unit_bytes;
    const std::size_t bytes = static_cast<std::size_t>(last - first) * unit_bytes;
    cuda_check(cudaMemcpyAsync(static_cast<std::byte*>(dst.raw()) + at, lane.host, bytes,
                               cudaMemcpyHostToDevice, s),
               "upload");
    cuda_check(cudaEventRecord(lane.done, s), "upload");
  });
}

void CudaBackend::look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) {
  const std::int64_t n = check_units("look_at", src, unit_bytes);
  const std::int64_t step = units_per_part(unit_bytes);
  stream();
  Lanes& all = lanes(static_cast<std::size_t>(step) * unit_bytes);
  for_parts(n, step, [&](std::int64_t first, std::int64_t last) {
    cudaStream_t s = stream();
    Lanes::Lane& lane = all.next();
    const std::size_t at = static_cast<std::size_t>(first) * unit_bytes;
    const std::size_t bytes = static_cast<std::size_t>(last - first) * unit_bytes;
    cuda_check(cudaMemcpyAsync(lane.host, static_cast<const std::byte*>(src.raw()) + at, bytes,
                               cudaMemcpyDeviceToHost, s),
               "download");
    cuda_check(cudaEventRecord(lane.done, s), "download");
    cuda_check(cudaEventSynchronize(lane.done), "download");
    look(first, last, lane.host);
  });
}

}  // namespace lk
