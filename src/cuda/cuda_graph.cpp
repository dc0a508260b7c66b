// Recorded work as one CUDA graph, launched as a whole.
#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"

namespace lk {

// The scratch of one recording, or of several that run one after the other. Nobody else gets it
// while one of them exists.
class CudaBackend::RecordedMemory {
 public:
  explicit RecordedMemory(CudaBackend& backend) : backend_(backend) {}
  ~RecordedMemory() {
    backend_.block_cache().give_back(blocks_);
    backend_.host_cache_.give_back(host_blocks_);
  }
  RecordedMemory(const RecordedMemory&) = delete;
  RecordedMemory& operator=(const RecordedMemory&) = delete;

  // Until end(), allocations are served from this memory first, and memory that they add stays
  // here.
  void begin() {
    backend_.block_cache().begin_recording(blocks_);
    backend_.host_cache_.begin_recording(host_blocks_);
  }
  void end() {
    blocks_ = backend_.block_cache().end_recording();
    host_blocks_ = backend_.host_cache_.end_recording();
  }
  template <class F>
  void around(const F& work) {
    begin();
    try {
      work();
    } catch (...) {
      end();
      throw;
    }
    end();
  }

 private:
  CudaBackend& backend_;
  BlockCache::Blocks blocks_, host_blocks_;
};

class CudaBackend::Graph final : public Recording {
 public:
  Graph(CudaBackend& backend, std::shared_ptr<RecordedMemory> memory)
      : backend_(backend), memory_(std::move(memory)) {}
  ~Graph() override {
    if (!exec_) return;
    backend_.settle();
    cudaStreamSynchronize(backend_.stream_);
    cudaGraphExecDestroy(exec_);
  }

  // Relaxed capture: the cache may ask the driver for a block, which the strict modes forbid.
  void capture(const std::function<void()>& work) {
    cudaStream_t stream = backend_.stream();
    const std::int64_t matmuls = backend_.weight_gradient_matmuls();
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording");
    cudaGraph_t graph = nullptr;
    try {
      memory_->around(work);
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    cuda_check(cudaStreamEndCapture(stream, &graph), "recording");
    cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    cuda_check(status, "recording");
    weight_gradients_ = backend_.weight_gradient_matmuls() - matmuls;
    backend_.weight_gradient_count() -= weight_gradients_;  // nothing has run yet
  }

  void run() override {
    cuda_check(cudaGraphLaunch(exec_, backend_.stream()), "running recorded work");
    backend_.weight_gradient_count() += weight_gradients_;
  }
  void run_beside(const std::function<void()>& other) override { memory_->around(other); }

  const std::shared_ptr<RecordedMemory>& memory() const { return memory_; }

 private:
  CudaBackend& backend_;
  std::shared_ptr<RecordedMemory> memory_;
  cudaGraphExec_t exec_ = nullptr;
  std::int64_t weight_gradients_ = 0;
};

std::unique_ptr<Recording> CudaBackend::record(const std::function<void()>& work,
                                               const Recording* beside) {
  auto graph = std::make_unique<Graph>(*this, beside ? static_cast<const Graph*>(beside)->memory()
                                                     : std::make_shared<RecordedMemory>(*this));
  graph->capture(work);
  return graph;
}

}  // namespace lk
