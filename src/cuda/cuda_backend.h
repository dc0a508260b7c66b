// CudaBackend: one GPU, one ordered stream, kernels of our own, and GEMMs through cuBLASLt.
//
// Where things are: this class's methods are defined in the .cu file of their op family (named as
// in the CPU backend); memory, waits and the constructor are in cuda_backend.cpp, copies there and in
// staging.cpp, offload.cpp and shard.cpp.
//
// Note [One stream]: every kernel, GEMM and copy that work waits for is submitted to one stream, so a
// block of memory may be handed out again as soon as its last user was submitted, and the order of
// every sum is fixed. Copies beside the work have a stream of their own: Note [Side stream]. No kernel
// adds floats with atomics: two runs give the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>

#include "cuda/cublaslt.h"
#include "cuda/traits.h"
#include "tensor/backend.h"
#include "tensor/backend_ops.h"

namespace lk {

class CudaLoraKernels;
class CudaCacheKernels;
class CudaDoraKernels;
class CudaSharedKeyKernels;
class CudaQuantisedKernels;
class CudaSliceKernels;
struct Fp8Rows;

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device);
  ~CudaBackend() override;

  std::string name() const override;
  std::string description() const override;
  std::int64_t free_memory() const override;
  void upload(const Tensor& dst, const void* src, std::size_t bytes) override;
  void download(void* dst, const Tensor& src, std::size_t bytes) override;
  // staging.cpp
  void upload_made(const Tensor& dst, std::size_t unit_bytes, const MakeUnits& make) override;
  void look_at(const Tensor& src, std::size_t unit_bytes, const LookAtUnits& look) override;
  void synchronize() override;
  // Note [Waiting for others]: what the stream waits for may be another process's work (nccl.cpp),
  // and one that is gone would have the host wait for ever. So while it waits for the device it
  // asks the guard again and again, with how long it has waited; the guard ends that by throwing.
  // Null: none.
  using WaitGuard = std::function<void(std::chrono::steady_clock::duration waited)>;
  void guard_waits(WaitGuard guard) { guard_ = std::move(guard); }
  // Returns when the event has come.
  void wait_for(cudaEvent_t event, const char* what) const;
  std::unique_ptr<Readback> read_later(const Tensor& x) override;
  std::unique_ptr<Recording> record(const std::function<void()>& work,  // cuda_graph.cpp
                                    const Recording* beside) override;
  std::unique_ptr<DeviceClock> make_clock() override;             // device_clock.cpp
  std::unique_ptr<StoredCopy> offload(const Tensor& x) override;  // offload.cpp
  std::unique_ptr<ShardedCopy> shard(const Tensor& x, int rank, int size) override;  // shard.cpp
  LoraKernels* lora_kernels() override;                                              // cuda/lora/
  CacheKernels* cache_kernels() override;
  AdapterKernels* adapter_kernels() override;       // cuda/lora/
  DoraKernels* dora_kernels() override;             // cuda/lora/
  SharedKeyKernels* shared_key_kernels() override;  // cuda/attention/
  QuantisedKernels* quantised_kernels() override;   // dequantise.cu
  SliceKernels* slice_kernels() override;           // optim.cu

  // Fp8Kernels::multiply, in fp8.cu.
  bool multiply_fp8(const Tensor& y, GradMode mode, const Fp8Rows& a, const Fp8Rows& b,
                    const Tensor& addend);
  // The major compute capability.
  int generation() const;

  // Counts, all zero, with which blocks of a kernel find out who is the last; a kernel leaves them zero. One
  // set serves all of the backend's kernels, as each touches it after wait_for_previous() alone.
  static constexpr std::int64_t kArrivals = 16384;
  std::uint32_t* arrivals() { return arrivals_; }

  // The stream, with this backend's GPU made current for the calling thread.
  cudaStream_t stream() const;

  void prepare_linear(Weight& w) override;

  // The ops; each is defined in the .cu file of its family.
#define LK_OVERRIDE(op, parameters, arguments) void op parameters override;
  LK_BACKEND_OPS(LK_OVERRIDE)
#undef LK_OVERRIDE

 private:
  class Graph;
  class RecordedMemory;
  class HostBlock;
  class Shard;
  class SideCopy;
  class Lanes;
  static BlockCache make_host_cache(int device);
  void matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                 const Tensor& b) override;
  void column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                   const Tensor& mean, const Tensor& rstd) override;
  void sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                      const Tensor& ids) override;
  void gemm(const Tensor& c, GradMode mode, double alpha, const Tensor& a, bool transpose_a,
            const Tensor& b, bool transpose_b);
  void* blas_workspace();
  void scatter(const Tensor& y, bool accumulate, const Tensor& x, const Tensor& rows);

  // Pinned host memory for copies: two halves, so that one fills while the other travels. Uploads
  // lie one after the other in a half, so many small ones need no wait. A half is written again
  // from its start only after the event says that its last copy has left it.
  static constexpr std::size_t kStagingBytes = std::size_t{4} << 20;
  struct Staging {
    std::byte* host = nullptr;
    cudaEvent_t done = nullptr;
    std::size_t used = 0;
  };
  Staging& next_staging();
  // Call it before the host waits otherwise than by wait_for(): after it the device waits for nobody.
  void settle() noexcept;
  Lanes& lanes(std::size_t bytes);

  // Where read_later()'s values land; a Readback borrows one and returns it.
  struct Landing;
  class CudaReadback;
  std::vector<std::unique_ptr<Landing>> landings_;

  int device_;
  cudaStream_t stream_ = nullptr, side_stream_ = nullptr;
  cudaEvent_t idle_ = nullptr;  // the stream's end, for synchronize()
  std::uint32_t* arrivals_ = nullptr;
  WaitGuard guard_;
  BlockCache host_cache_;  // pinned memory for offload()
  std::array<Staging, 2> staging_;
  int staging_turn_ = 0;
  std::shared_ptr<Lanes> lanes_;  // made when first needed
  CublasLt blas_;
  Tensor blas_workspace_;  // allocated at the first GEMM
  std::unique_ptr<CudaLoraKernels> lora_kernels_;
  std::unique_ptr<CudaCacheKernels> cache_kernels_;
  std::unique_ptr<CudaDoraKernels> dora_kernels_;
  std::unique_ptr<CudaSharedKeyKernels> shared_key_kernels_;
  std::unique_ptr<CudaQuantisedKernels> quantised_kernels_;
  std::unique_ptr<CudaSliceKernels> slice_kernels_;
};

}  // namespace lk
