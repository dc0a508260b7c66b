#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "cuda/attention/shared_keys.h"
#include "cuda/cache_kernels.h"
#include "cuda/cuda_check.h"
#include "cuda/lora/dora_kernels.h"
#include "cuda/lora/lora_kernels.h"
#include "cuda/quantised_kernels.h"
#include "cuda/slice_kernels.h"

namespace lk {
namespace {

void set_device(int device) { cuda_check(cudaSetDevice(device), "selecting the GPU"); }

// `settle` runs before the driver is asked to free memory.
std::unique_ptr<BlockCache> make_cache(int device, std::function<void()> settle) {
  // The driver's blocks are 256-byte aligned. A refusal is an answer here, not an error: clear it.
  auto allocate = [device](std::size_t bytes) -> void* {
    void* block = nullptr;
    if (cudaSetDevice(device) == cudaSuccess && cudaMalloc(&block, bytes) == cudaSuccess)
      return block;
    cudaGetLastError();
    return nullptr;
  };
  // cudaFree waits for work in flight, so no kernel loses memory that it still uses.
  auto release = [device, settle = std::move(settle)](void* block, std::size_t) {
    settle();
    cudaSetDevice(device);
    cudaFree(block);
  };
  return std::make_unique<BlockCache>(allocate, release);
}

}  // namespace

struct CudaBackend::Landing {
  std::byte* host = nullptr;  // pinned
  std::size_t bytes;
  cudaEvent_t done = nullptr;
  explicit Landing(std::size_t size) : bytes(size) {
    cuda_check(cudaMallocHost(reinterpret_cast<void**>(&host), bytes),
               "allocating pinned host memory");
    cuda_check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "creating an event");
  }
  ~Landing() {
    if (done) cudaEventDestroy(done);
    cudaFreeHost(host);
  }
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;
};

class CudaBackend::CudaReadback final : public Readback {
 public:
  CudaReadback(CudaBackend& backend, std::unique_ptr<Landing> landing, const Tensor& x)
      : backend_(backend),
        landing_(std::move(landing)),
        dtype_(x.dtype()),
        n_(static_cast<std::size_t>(x.numel())) {}
  // Nobody may write to the landing while a value is still on its way to it.
  ~CudaReadback() override {
    if (!done_) backend_.settle();
    cudaEventSynchronize(landing_->done);
    backend_.landings_.push_back(std::move(landing_));
  }
  bool done() const override {
    const cudaError_t state = cudaEventQuery(landing_->done);
    if (state == cudaErrorNotReady)
      cudaGetLastError();  // "not ready" counts as an error, which the next launch would report
    else
      cuda_check(state, "asking for a value");
    return state == cudaSuccess;
  }
  double value(std::size_t i) override {
    check(i < n_, "read_later: value ", i, " of ", n_);
    if (!done_) backend_.wait_for(landing_->done, "reading a value");
    done_ = true;
    const auto at = [&]<class T>(T value) -> double {
      std::memcpy(&value, landing_->host + i * sizeof value, sizeof value);
      return value;
    };
    return dtype_ == DType::F64 ? at(0.0) : at(0.0f);
  }

 private:
  CudaBackend& backend_;
  std::unique_ptr<Landing> landing_;
  DType dtype_;
  std::size_t n_;
  bool done_ = false;
};

CudaBackend::CudaBackend(int device)
    : Backend(kCudaTraits), device_(device), host_cache_(make_host_cache(device)), blas_(device) {
  set_device(device);
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating the stream");
  cuda_check(cudaStreamCreateWithFlags(&side_stream_, cudaStreamNonBlocking),
             "creating the stream of copies");
  cuda_check(cudaEventCreateWithFlags(&idle_, cudaEventDisableTiming), "creating an event");
  cuda_check(cudaMalloc(reinterpret_cast<void**>(&arrivals_), kArrivals * sizeof *arrivals_),
             "allocating counts");
  cuda_check(cudaMemsetAsync(arrivals_, 0, kArrivals * sizeof *arrivals_, stream_),
             "zeroing counts");
  for (Staging& s : staging_) {
    cuda_check(cudaMallocHost(reinterpret_cast<void**>(&s.host), kStagingBytes),
               "allocating pinned host memory");
    cuda_check(cudaEventCreateWithFlags(&s.done, cudaEventDisableTiming), "creating an event");
  }
  set_cache(make_cache(device, [this] { settle(); }));
  lora_kernels_ = std::make_unique<CudaLoraKernels>(*this, weight_gradient_count());
  cache_kernels_ = std::make_unique<CudaCacheKernels>(*this);
  dora_kernels_ = std::make_unique<CudaDoraKernels>(*this, weight_gradient_count());
  shared_key_kernels_ = std::make_unique<CudaSharedKeyKernels>(*this);
  quantised_kernels_ = std::make_unique<CudaQuantisedKernels>(*this);
  slice_kernels_ = std::make_unique<CudaSliceKernels>(*this);
}

LoraKernels* CudaBackend::lora_kernels() { return lora_kernels_.get(); }
CacheKernels* CudaBackend::cache_kernels() { return cache_kernels_.get(); }
AdapterKernels* CudaBackend::adapter_kernels() { return lora_kernels_.get(); }
DoraKernels* CudaBackend::dora_kernels() { return dora_kernels_.get(); }
SharedKeyKernels* CudaBackend::shared_key_kernels() { return shared_key_kernels_.get(); }
QuantisedKernels* CudaBackend::quantised_kernels() { return quantised_kernels_.get(); }
SliceKernels* CudaBackend::slice_kernels() { return slice_kernels_.get(); }

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  cudaStreamSynchronize(side_stream_);
  cudaStreamSynchronize(stream_);
  lanes_.reset();
  landings_.clear();
  host_cache_.trim();
  blas_workspace_ = Tensor();
  release_cache();
  for (Staging& s : staging_) {
    cudaEventDestroy(s.done);
    cudaFreeHost(s.host);
  }
  cudaFree(arrivals_);
  cudaEventDestroy(idle_);
  cudaStreamDestroy(side_stream_);
  cudaStreamDestroy(stream_);
}

int CudaBackend::generation() const {
  int major = 0;
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_),
             "compute capability");
  return major;
}

std::string CudaBackend::name() const { return concat("cuda:", device_); }

std::string CudaBackend::description() const {
  cudaDeviceProp p{};
  int driver = 0, runtime = 0;
  cuda_check(cudaGetDeviceProperties(&p, device_), "reading the GPU's properties");
  cuda_check(cudaDriverGetVersion(&driver), "reading the driver's version");
  cuda_check(cudaRuntimeGetVersion(&runtime), "reading the runtime's version");
  auto version = [](int v) { return concat(v / 1000, ".", v % 1000 / 10); };
  return concat(p.name, ", compute capability ", p.major, ".", p.minor, ", ", p.multiProcessorCount,
                " multiprocessors, ", p.totalGlobalMem >> 20, " MiB, CUDA driver ", version(driver),
                ", runtime ", version(runtime), ", cuBLASLt ", blas_.version());
}

cudaStream_t CudaBackend::stream() const {
  set_device(device_);  // a few nanoseconds when it is current already
  return stream_;
}

std::int64_t CudaBackend::free_memory() const {
  std::size_t unused = 0, total = 0;
  set_device(device_);
  cuda_check(cudaMemGetInfo(&unused, &total), "asking for free memory");
  return static_cast<std::int64_t>(unused) + cache().reserved_bytes() - ledger().total().live_bytes;
}

CudaBackend::Staging& CudaBackend::next_staging() {
  Staging& s = staging_[static_cast<std::size_t>(staging_turn_)];
  staging_turn_ ^= 1;
  wait_for(s.done, "waiting for a copy");
  s.used = 0;
  return s;
}

void CudaBackend::upload(const Tensor& dst, const void* src, std::size_t bytes) {
  check(dst.contiguous() && bytes == dst.bytes(), "upload: ", bytes, " bytes into ", dst.shape());
  cudaStream_t s = stream();
  for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
    std::size_t n = std::min(kStagingBytes, bytes - at);
    Staging* staging = &staging_[static_cast<std::size_t>(staging_turn_ ^ 1)];  // the one used last
    if (staging->used + n > kStagingBytes) staging = &next_staging();
    std::byte* host = staging->host + staging->used;
    staging->used += (n + 255) / 256 * 256;
    std::memcpy(host, static_cast<const std::byte*>(src) + at, n);
    cuda_check(cudaMemcpyAsync(static_cast<std::byte*>(dst.raw()) + at, host, n,
                               cudaMemcpyHostToDevice, s),
               "upload");
    cuda_check(cudaEventRecord(staging->done, s), "upload");
  }
}

void CudaBackend::download(void* dst, const Tensor& src, std::size_t bytes) {
  check(src.contiguous() && bytes == src.bytes(), "download: ", bytes, " bytes from ", src.shape());
  cudaStream_t s = stream();
  // While piece i is copied out of its half of the staging memory, piece i + 1 travels into the
  // other.
  Staging* travelling = nullptr;
  std::size_t travelling_at = 0, travelling_bytes = 0;
  auto land = [&] {
    wait_for(travelling->done, "download");
    std::memcpy(static_cast<std::byte*>(dst) + travelling_at, travelling->host, travelling_bytes);
  };
  for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
    std::size_t n = std::min(kStagingBytes, bytes - at);
    Staging& staging = next_staging();
    cuda_check(cudaMemcpyAsync(staging.host, static_cast<const std::byte*>(src.raw()) + at, n,
                               cudaMemcpyDeviceToHost, s),
               "download");
    cuda_check(cudaEventRecord(staging.done, s), "download");
    if (travelling) land();
    travelling = &staging, travelling_at = at, travelling_bytes = n;
  }
  if (travelling) land();
}

std::unique_ptr<Readback> CudaBackend::read_later(const Tensor& x) {
  check(x.dtype() == DType::F32 || x.dtype() == DType::F64, "read_later: ", dtype_name(x.dtype()));
  check(x.contiguous(), "read_later: ", x.shape(), " with gaps");
  cudaStream_t s = stream();
  std::unique_ptr<Landing> landing;
  const auto free = std::find_if(landings_.begin(), landings_.end(),
                                 [&](const auto& l) { return l->bytes >= x.bytes(); });
  if (free == landings_.end()) {
    constexpr std::size_t kLeast = 256;
    landing = std::make_unique<Landing>(std::max(kLeast, x.bytes()));
  } else {
    landing = std::move(*free);
    landings_.erase(free);
  }
  copy_to_host(landing->host, x, s);
  cuda_check(cudaEventRecord(landing->done, s), "reading a value");
  return std::make_unique<CudaReadback>(*this, std::move(landing), x);
}

void CudaBackend::synchronize() {
  cuda_check(cudaEventRecord(idle_, stream()), "waiting for the GPU");
  wait_for(idle_, "waiting for the GPU");
  // A copy that nobody has waited for is on this one alone.
  cuda_check(cudaStreamSynchronize(side_stream_), "waiting for the GPU");
}

void CudaBackend::wait_for(cudaEvent_t event, const char* what) const {
  if (!guard_) return cuda_check(cudaEventSynchronize(event), what);
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  for (;;) {
    const Clock::duration waited = Clock::now() - start;
    guard_(waited);
    const cudaError_t status = cudaEventQuery(event);
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) cuda_check(status, what);
    cudaGetLastError();  // "not ready" counts as an error, which the next launch would report
    if (waited > std::chrono::milliseconds(1))
      std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void CudaBackend::settle() noexcept {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;  // where nothing has run yet
  if (!guard_ || cudaStreamIsCapturing(stream_, &capture) != cudaSuccess ||
      capture != cudaStreamCaptureStatusNone)
    return;
  try {
    synchronize();
  } catch (const std::exception&) {
    // The guard has ended what the device waited for, and throws again where the host next waits.
  }
}

}  // namespace lk
