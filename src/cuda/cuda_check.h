// Turns CUDA's status codes into exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include "tensor/error.h"

namespace lk {

// Throws Error naming what was requested. Work is asynchronous, so the fault may be an earlier
// kernel's: run under compute-sanitizer to find out whose.
inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();  // otherwise the next launch would report it again
  throw Error(concat("cuda: ", what, ": ", cudaGetErrorString(status), " (",
                     cudaGetErrorName(status), ")"));
}

}  // namespace lk
