// Recorded work: one CUDA graph, launched as a whole.
#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"

namespace lk {

class CudaBackend::Graph final : public Recording {
 public:
  explicit Graph(CudaBackend& backend) : backend_(backend) {}
  ~Graph() override {
    if (exec_) {
      cudaStreamSynchronize(backend_.stream_);
      cudaGraphExecDestroy(exec_);
    }
    backend_.block_cache().give_back(blocks_);
    backend_.host_cache_.give_back(host_blocks_);
  }

  // Relaxed: the cache may call the driver for a block, which the strict modes forbid.
  void capture(const std::function<void()>& work) {
    cudaStream_t stream = backend_.stream();
    const std::int64_t matmuls = backend_.weight_gradient_matmuls();
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording");
    backend_.block_cache().begin_recording();
    backend_.host_cache_.begin_recording();
    cudaGraph_t graph = nullptr;
    auto end = [&] {
      blocks_ = backend_.block_cache().end_recording();
      host_blocks_ = backend_.host_cache_.end_recording();
      return cudaStreamEndCapture(stream, &graph);
    };
    try {
      work();
    } catch (...) {
      end();
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    cuda_check(end(), "recording");
    cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    cuda_check(status, "recording");
    weight_gradients_ = backend_.weight_gradient_matmuls() - matmuls;
    backend_.count_weight_gradients(-weight_gradients_);  // nothing ran yet
  }

  void run() override {
    cuda_check(cudaGraphLaunch(exec_, backend_.stream()), "running recorded work");
    backend_.count_weight_gradients(weight_gradients_);
  }

 private:
  CudaBackend& backend_;
  BlockCache::Blocks blocks_, host_blocks_;
  cudaGraphExec_t exec_ = nullptr;
  std::int64_t weight_gradients_ = 0;
};

std::unique_ptr<Recording> CudaBackend::record(const std::function<void()>& work) {
  auto graph = std::make_unique<Graph>(*this);
  graph->capture(work);
  return graph;
}

}  // namespace lk
