// open_device() and its companions in a build with CUDA. A build without it has no_cuda.cpp
// instead.
#include "cuda/open_device.h"

#include <charconv>

#include "cpu/cpu_backend.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_check.h"
#include "cuda/nccl.h"

#ifndef LK_CUDA_MIN_ARCH
#define LK_CUDA_MIN_ARCH 80
#endif

namespace lk {
namespace {

// How many devices the driver reports; 0 without a driver, with an old driver, or without a device.
int n_devices() {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return n;
}

int compute_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return 10 * major + minor;
}

}  // namespace

int n_gpus() {
  int usable = 0;
  for (int i = 0, n = n_devices(); i < n; ++i) usable += compute_capability(i) >= LK_CUDA_MIN_ARCH;
  return usable;
}

std::unique_ptr<Backend> open_device(const std::string& name) {
  if (name == "cpu") return make_cpu_backend();
  int n = n_devices();
  if (name == "auto" || name == "cuda") {
    for (int i = 0; i < n; ++i)
      if (compute_capability(i) >= LK_CUDA_MIN_ARCH) return std::make_unique<CudaBackend>(i);
    if (name == "auto") return make_cpu_backend();
    throw UsageError("cuda: no usable GPU (no device, no driver for it, or too old a one)");
  }
  int device = -1;
  const char* end = name.data() + name.size();
  bool well_formed = name.rfind("cuda:", 0) == 0 && name.size() > 5;
  if (well_formed) {
    auto [rest, error] = std::from_chars(name.data() + 5, end, device);
    well_formed = error == std::errc() && rest == end && device >= 0;
  }
  if (!well_formed)
    throw UsageError(concat("unknown device \"", name, "\": expected auto, cpu, cuda or cuda:N"));
  if (n == 0) throw UsageError(concat(name, ": no usable GPU (no device, or no driver for it)"));
  if (device >= n)
    throw UsageError(concat(name, ": this machine has ", n, " GPU(s), counted from 0"));
  if (int cc = compute_capability(device); cc < LK_CUDA_MIN_ARCH)
    throw UsageError(concat(name, ": compute capability ", cc / 10, ".", cc % 10,
                            " is below this build's ", LK_CUDA_MIN_ARCH / 10, ".",
                            LK_CUDA_MIN_ARCH % 10));
  return std::make_unique<CudaBackend>(device);
}

bool has_link(const Backend& backend) {
  return dynamic_cast<const CudaBackend*>(&backend) != nullptr && nccl_is_there();
}

std::string make_link_id() { return make_nccl_id(); }

std::unique_ptr<Transport> open_link(Backend& backend, const std::string& id, int rank, int size,
                                     std::chrono::seconds timeout) {
  return make_nccl_transport(dynamic_cast<CudaBackend&>(backend), id, rank, size, timeout);
}

}  // namespace lk
