// CacheKernels: operations of a step of generation with a KV cache, each in one launch where the
// device can, since launches cost as much as the products of such a step. nn/cached_ops.h defines
// the operations and composes them from the core's ops where there is no kernel.
#pragma once

#include <span>

#include "tensor/backend.h"

namespace lk {

// Where a step's keys and values go: rows (T) I32, distinct, of keys and values (P, G*D).
struct CacheRows {
  Tensor keys, values, rows;
};
// One of several frozen products of one input: y (T,N) = addend (T,N) + x wᵀ. An undefined addend
// is zero.
struct LinearPart {
  Tensor y;
  const Weight* w;
  Tensor addend = {};  // not y's memory
};
// RMSNorm of a product's input, computed where the product reads it.
struct InputNorm {
  const Weight* gain;  // (K)
  double eps;
  Tensor normed;  // (T,K): the normed input is left here
};

class CacheKernels {
 public:
  virtual ~CacheKernels() = default;
  CacheKernels(const CacheKernels&) = delete;
  CacheKernels& operator=(const CacheKernels&) = delete;

  // Each operation returns false, and does nothing, where no kernel suits the shape.
  virtual bool linear_parts(const Tensor& x, const InputNorm* norm,
                            std::span<const LinearPart> parts) = 0;
  virtual bool rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v,
                               const CacheRows& cache, const Tensor& table, const Tensor& positions,
                               int head_dim) = 0;

 protected:
  CacheKernels() = default;
};

}  // namespace lk
