#include "cuda/cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <utility>

#include "cuda/cuda_check.h"

namespace lk {
namespace {

constexpr std::size_t kMaxPlans = 8192;  // packed batches bring ever new T: then start over

void blas_check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    throw Error(concat("cublasLt: ", what, ": ", cublasLtGetStatusString(status)));
}

cudaDataType_t data_type(DType t) {
  switch (t) {
    case DType::F32:
      return CUDA_R_32F;
    case DType::BF16:
      return CUDA_R_16BF;
    case DType::U8:
      return CUDA_R_8F_E4M3;
    default:
      throw Error(concat("cublasLt: no GEMM in ", dtype_name(t)));
  }
}

// Note [Small clusters]: cuBLASLt 13.1's kernels whose clusters have eight blocks (nvjet, 2x4) can end
// with an illegal instruction while several processes share a GPU: a block signals a barrier of a
// neighbour that has left. On an H200, ten at a time, that ended 8 of 114 trainings; 0 of 70 with
// clusters of four at most, which cost nothing at 8,192 tokens and 5 % of a step of SmolLM2 at 1,024.
bool has_small_cluster(const cublasLtMatmulAlgo_t& algo) {
  std::uint16_t shape = CUBLASLT_CLUSTER_SHAPE_AUTO;
  std::size_t written = 0;
  if (cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &shape,
                                           sizeof shape, &written) != CUBLAS_STATUS_SUCCESS)
    return true;  // a kernel of before clusters
  switch (shape) {
    case CUBLASLT_CLUSTER_SHAPE_AUTO:
    case CUBLASLT_CLUSTER_SHAPE_1x1x1:
    case CUBLASLT_CLUSTER_SHAPE_2x1x1:
    case CUBLASLT_CLUSTER_SHAPE_3x1x1:
    case CUBLASLT_CLUSTER_SHAPE_4x1x1:
    case CUBLASLT_CLUSTER_SHAPE_1x2x1:
    case CUBLASLT_CLUSTER_SHAPE_1x3x1:
    case CUBLASLT_CLUSTER_SHAPE_1x4x1:
    case CUBLASLT_CLUSTER_SHAPE_2x2x1:
      return true;
    default:
      return false;
  }
}

template <class T>
void set_attribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
  blas_check(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value), "descriptor");
}

// The largest power of two, up to 256, that divides the address.
std::uint32_t alignment_of(const void* pointer) {
  auto address = reinterpret_cast<std::uintptr_t>(pointer) | 256u;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

}  // namespace

// Row-major is column-major transposed, so cuBLASLt is asked for cᵀ = op(b)ᵀ op(a)ᵀ: its first
// operand is our b, and its m is our n. A row-major matrix (r,c) with stride ld is a column-major
// (c,r) with the same ld.
struct CublasLt::Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, addend = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool supported = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (a) cublasLtMatrixLayoutDestroy(a);
    if (b) cublasLtMatrixLayoutDestroy(b);
    if (c) cublasLtMatrixLayoutDestroy(c);
    if (addend) cublasLtMatrixLayoutDestroy(addend);
    if (desc) cublasLtMatmulDescDestroy(desc);
  }
};

void CublasLt::set_scales(const Plan& p, const Scales& scales) {
  set_attribute(p.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(scales.b));
  set_attribute(p.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(scales.a));
}

CublasLt::CublasLt(int device) {
  cuda_check(cudaSetDevice(device), "selecting the GPU");
  blas_check(cublasLtCreate(&handle_), "creating a handle");
}

CublasLt::~CublasLt() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

std::string CublasLt::version() const {
  std::size_t v = cublasLtGetVersion();
  return concat(v / 10000, ".", v / 100 % 100, ".", v % 100);
}

const CublasLt::Plan& CublasLt::plan(const Key& key, const Scales& scales) {
  if (auto it = plans_.find(key); it != plans_.end()) return *it->second;
  if (plans_.size() >= kMaxPlans) plans_.clear();
  auto& slot = plans_[key];
  slot = std::make_unique<Plan>();
  Plan& p = *slot;
  const Gemm& g = key.gemm;

  blas_check(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
  set_attribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set_attribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (g.in == DType::U8) {
    const auto by_row = std::int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F};
    set_attribute(p.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, by_row);
    set_attribute(p.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, by_row);
    set_attribute(p.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, std::int8_t{1});
    set_scales(p, scales);
  }

  auto layout = [](cublasLtMatrixLayout_t& out, DType t, std::int64_t rows, std::int64_t cols,
                   std::int64_t ld) {
    blas_check(cublasLtMatrixLayoutCreate(&out, data_type(t), static_cast<std::uint64_t>(cols),
                                          static_cast<std::uint64_t>(rows), ld),
               "layout");
  };
  layout(p.b, g.in, g.transpose_a ? g.k : g.m, g.transpose_a ? g.m : g.k, g.lda);
  layout(p.a, g.in, g.transpose_b ? g.n : g.k, g.transpose_b ? g.k : g.n, g.ldb);
  layout(p.c, g.out, g.m, g.n, g.ldc);
  layout(p.addend, g.out, g.m, g.n, g.ld_addend ? g.ld_addend : g.ldc);

  cublasLtMatmulPreference_t preference = nullptr;
  blas_check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    blas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
               "preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment_b);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment_addend);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment_c);
  // Split sums may only be added in F32: partial sums in the output's dtype would round BF16 twice.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  // The fastest first, by cuBLASLt's estimate.
  std::array<cublasLtMatmulHeuristicResult_t, 16> results{};
  int found = 0;
  cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, p.desc, p.a, p.b, p.addend, p.c, preference,
                                     static_cast<int>(results.size()), results.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  p.supported = status == CUBLAS_STATUS_SUCCESS && found > 0;
  if (!p.supported && status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED &&
      status != CUBLAS_STATUS_INVALID_VALUE)
    blas_check(status, "choosing an algorithm");
  const auto last = results.begin() + found;
  const auto small =
      std::find_if(results.begin(), last, [](const auto& r) { return has_small_cluster(r.algo); });
  p.algo = (small != last ? small : results.begin())->algo;
  return p;
}

bool CublasLt::run(const Gemm& g, void* c, float alpha, const void* a, const void* b,
                   const void* addend, void* workspace, cudaStream_t stream, const Scales& scales) {
  if (!addend) addend = c;
  const Plan& p =
      plan({g, alignment_of(a), alignment_of(b), alignment_of(c), alignment_of(addend)}, scales);
  if (!p.supported) return false;
  if (g.in == DType::U8) set_scales(p, scales);
  float beta = g.accumulate ? 1.0f : 0.0f;
  cublasStatus_t status =
      cublasLtMatmul(handle_, p.desc, &alpha, b, p.a, a, p.b, &beta, addend, p.addend, c, p.c,
                     &p.algo, workspace, kWorkspaceBytes, stream);
  if (status != CUBLAS_STATUS_SUCCESS)
    blas_check(status, concat("(", g.m, ",", g.k, ") times (", g.k, ",", g.n, ")").c_str());
  return true;
}

}  // namespace lk
