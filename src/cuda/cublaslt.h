// cuBLASLt for row-major matrices: one function and a cache of its plans.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "cuda/scratch.h"
#include "tensor/dtype.h"

struct cublasLtContext;

namespace lk {

// Row-major c (m,n) = alpha * op(a) op(b) + (accumulate ? addend : 0), op(a) (m,k), op(b) (k,n).
// The addend is c unless another one is given. A transposed operand is stored (k,m) or (n,k). `ld`
// counts elements. Sums are F32: F32 inputs use plain FP32 (no TF32), BF16 inputs the tensor cores.
// U8 inputs are E4M3 codes with a scale for each row of a and each column of op(b); only a times bᵀ
// exists then, and sums keep about 14 bits while they run (fast accumulation).
struct Gemm {
  bool transpose_a = false, transpose_b = false, accumulate = false;
  DType in = DType::F32, out = DType::F32;
  std::int64_t m = 0, n = 0, k = 0;
  std::int64_t lda = 0, ldb = 0, ldc = 0;
  std::int64_t ld_addend = 0;  // of the addend, if it isn't c itself

  auto operator<=>(const Gemm&) const = default;
};

// Note [Plans]: an algorithm is chosen per shape by cuBLASLt's heuristic alone and then kept.
// Timing the candidates would be a little faster on some shapes, but would let the clock choose the
// order of a sum: the same seed would no longer give the same bytes.
class CublasLt {
 public:
  static constexpr std::size_t kWorkspaceBytes = kGemmWorkspaceBytes;

  explicit CublasLt(int device);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Returns false, with nothing done, if cuBLASLt has no kernel for this shape and alignment (odd
  // BF16 strides). `addend` is null for c; `scales` are those of codes.
  struct Scales {
    const float *a = nullptr, *b = nullptr;
  };
  bool run(const Gemm& gemm, void* c, float alpha, const void* a, const void* b, const void* addend,
           void* workspace, cudaStream_t stream, const Scales& scales = {nullptr, nullptr});
  std::string version() const;

 private:
  struct Plan;
  struct Key {
    Gemm gemm;
    std::uint32_t alignment_a, alignment_b, alignment_c,
        alignment_addend;  // of the pointers: 1 ... 256 bytes
    auto operator<=>(const Key&) const = default;
  };
  const Plan& plan(const Key& key, const Scales& scales);
  static void set_scales(const Plan& plan, const Scales& scales);

  cublasLtContext* handle_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace lk
