// Matrix products: a frozen matrix and a few rows go to linear_few.cu, LoRA's short inner
// dimensions to lora/thin.cu, and the rest to cuBLASLt. What cuBLASLt refuses goes to our own tiles
// in this file.
//
// Shapes     c (M,N) (+)= alpha op(a) (M,K) op(b) (K,N); every operand with its own row stride
// Forms      nt: x wᵀ (forward)   nn: dy w (backward into x)   tn: aᵀ b (weight gradients, K
//            tokens)
// Numbers    F32 accumulation always; F32 inputs in plain FP32 (no TF32). GradMode::Add is beta =
//            1: with a zero product c keeps its bits, so a fresh adapter (B = 0) changes nothing.
//            When it adds to a BF16 c, cuBLASLt (13.1 on Hopper, measured) rounds the product to
//            BF16 first: one rounding more than the other two paths. Tensor cores truncate when
//            they add to the running sum: at K = 1500 that is 7 * 2^-24 * sum |a||b| at worst,
//            measured, where FP32 FMAs stay near 4.
//
// cuBLASLt refuses some BF16 shapes: strides of 1, 3, 5, 7 elements (LoRA ranks!) leave rows that
// its copy instructions cannot fetch. The kernel below takes any shape and stride: 64 x 64 tiles of
// c, K in slices of 16 through shared memory, 4 x 4 sums per thread in FP32.
//
// Split K    dA and dB contract over thousands of tokens into a few thousand outputs: too few tiles
//            to fill a GPU. K is then cut into slabs, one block each; their partial sums go to F32
//            scratch and are added in slab order by a second kernel. No atomics: same bits every
//            run. The number of slabs depends on the shape alone.
// Bytes      a is read ceil(N/64) times, b ceil(M/64) times, mostly from L2
// Limits     no tensor cores: at rank 7 about 30 % of bandwidth, where cuBLASLt reaches 75 to 83 %
//            at rank 8
#include "cuda/cache_kernels.h"
#include "cuda/linear_few.h"
#include "cuda/lora/thin.h"
#include "cuda/pack.cuh"
#include "cuda/rowwise.cuh"
#include "tensor/fp8_product.h"

namespace lk {
namespace {

constexpr int kTile = 64, kSlice = 16, kThreads = 256;

// An operand seen as (outer, k): element (i, k) is at data[i * outer_stride + k * k_stride].
template <class T>
struct Operand {
  const T* data;
  i64 outer, outer_stride, k_stride;
};

// Fetches a kTile x kSlice slice into shared memory as [k][outer]; neighbouring threads read
// neighbouring addresses, whichever of the two strides is 1. Elements outside the matrix are zero.
template <class T>
__device__ __forceinline__ void load_slice(float (&tile)[kSlice][kTile + 1], const Operand<T>& x,
                                           i64 first_outer, i64 first_k, i64 end_k) {
  for (int i = threadIdx.x; i < kTile * kSlice; i += kThreads) {
    int outer = x.k_stride == 1 ? i / kSlice : i % kTile;
    int k = x.k_stride == 1 ? i % kSlice : i / kTile;
    i64 o = first_outer + outer, kk = first_k + k;
    tile[k][outer] =
        o < x.outer && kk < end_k ? to_float(x.data[o * x.outer_stride + kk * x.k_stride]) : 0.0f;
  }
}

// Block (x, y, z): tile x of M, tile y of N, slab z of K. With `partial` the sums of slab z go to
// partial[z] (M,N); otherwise they go straight into c.
template <class TIn, class TOut>
__global__ void __launch_bounds__(kThreads)
    gemm_kernel(Matrix<TOut> c, Operand<TIn> a, Operand<TIn> b, i64 k, i64 slab, float alpha,
                bool accumulate, float* partial) {
  __shared__ float tile_a[kSlice][kTile + 1], tile_b[kSlice][kTile + 1];
  i64 m0 = static_cast<i64>(blockIdx.x) * kTile, n0 = static_cast<i64>(blockIdx.y) * kTile;
  i64 k_begin = blockIdx.z * slab, k_end = min(k, k_begin + slab);
  int tx = threadIdx.x % 16, ty = threadIdx.x / 16;  // owns rows ty + 16 i, columns tx + 16 j
  float sum[4][4] = {};
  for (i64 k0 = k_begin; k0 < k_end; k0 += kSlice) {
    load_slice(tile_a, a, m0, k0, k_end);
    load_slice(tile_b, b, n0, k0, k_end);
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kSlice; ++kk) {
      float u[4], v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) u[i] = tile_a[kk][ty + 16 * i], v[i] = tile_b[kk][tx + 16 * i];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      i64 row = m0 + ty + 16 * i, col = n0 + tx + 16 * j;
      if (row >= a.outer || col >= b.outer) continue;
      if (partial) {
        partial[(blockIdx.z * a.outer + row) * b.outer + col] = sum[i][j];
      } else {
        float x[1] = {alpha * sum[i][j]};
        write_pack<1>(c.at(row, col), x, accumulate);
      }
    }
}

// c (+)= alpha * (partial[0] + partial[1] + ...), in that order.
template <class TOut>
struct AddSlabsOp {
  static constexpr int kWidth = 1;
  Matrix<TOut> c;
  const float* partial;
  i64 rows, cols;
  int n_slabs;
  float alpha;
  bool accumulate;
  __device__ void operator()(i64 row, i64 col) const {
    float x[1] = {0.0f};
    for (i64 z = 0; z < n_slabs; ++z) x[0] += partial[(z * rows + row) * cols + col];
    x[0] *= alpha;
    write_pack<1>(c.at(row, col), x, accumulate);
  }
};

// Enough slabs for about 500 blocks, none shorter than 256.
i64 slab_count(i64 m, i64 n, i64 k) {
  i64 tiles = ceil_div(m, kTile) * ceil_div(n, kTile);
  return std::clamp<i64>(512 / tiles, 1, std::max<i64>(1, k / 256));
}

}  // namespace

void CudaBackend::gemm(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                       bool transpose_a, const Tensor& b, bool transpose_b) {
  Gemm g{.transpose_a = transpose_a,
         .transpose_b = transpose_b,
         .accumulate = mode == GradMode::Add,
         .in = a.dtype(),
         .out = c.dtype(),
         .m = transpose_a ? a.cols() : a.rows(),
         .n = transpose_b ? b.rows() : b.cols(),
         .k = transpose_a ? a.rows() : a.cols(),
         .lda = a.ld(),
         .ldb = b.ld(),
         .ldc = c.ld()};
  check((transpose_b ? b.cols() : b.rows()) == g.k && c.rows() == g.m && c.cols() == g.n,
        "cuda gemm: ", a.shape(), transpose_a ? "ᵀ" : "", " times ", b.shape(),
        transpose_b ? "ᵀ" : "", " into ", c.shape());
  check(a.dtype() == b.dtype() && (c.dtype() == a.dtype() || c.dtype() == DType::F32),
        "cuda gemm: ", dtype_name(a.dtype()), " times ", dtype_name(b.dtype()), " into ",
        dtype_name(c.dtype()));
  if (g.m == 0 || g.n == 0) return;
  if (g.k == 0) {  // an empty sum
    if (!g.accumulate) fill(c, 0.0);
    return;
  }
  if (thin_gemm(g, c, static_cast<float>(alpha), a, b, stream())) return;
  cudaStream_t s = stream();
  if (blas_.run(g, c.raw(), static_cast<float>(alpha), a.raw(), b.raw(), nullptr, blas_workspace(),
                s))
    return;

  i64 slab = ceil_div(ceil_div(g.k, slab_count(g.m, g.n, g.k)), kSlice) * kSlice;
  i64 slabs = ceil_div(g.k, slab);
  Tensor scratch;
  if (slabs > 1) scratch = empty(Tag::Workspace, DType::F32, {slabs, g.m, g.n});
  float* partial = scratch ? scratch.data<float>() : nullptr;
  dispatch_device(a.dtype(), [&]<class TIn>() {
    auto go = [&]<class TOut>() {
      using In = device_t<TIn>;
      using Out = device_t<TOut>;
      Operand<In> left{pointer<TIn>(a), g.m, transpose_a ? 1 : g.lda, transpose_a ? g.lda : 1};
      Operand<In> right{pointer<TIn>(b), g.n, transpose_b ? g.ldb : 1, transpose_b ? 1 : g.ldb};
      launch("gemm", gemm_kernel<In, Out>,
             grid_of(ceil_div(g.m, kTile), ceil_div(g.n, kTile), slabs), dim3(kThreads), 0, s,
             matrix<TOut>(c), left, right, g.k, slab, static_cast<float>(alpha), g.accumulate,
             partial);
      if (partial)
        launch_rowwise("gemm_add_slabs", g.m, g.n, s,
                       AddSlabsOp<Out>{matrix<TOut>(c), partial, g.m, g.n, static_cast<int>(slabs),
                                       static_cast<float>(alpha), g.accumulate});
    };
    if (c.dtype() == DType::F32)
      go.template operator()<float>();
    else
      go.template operator()<TIn>();
  });
}

void* CudaBackend::blas_workspace() {
  if (!blas_workspace_)
    blas_workspace_ =
        empty(Tag::Workspace, DType::U8, {static_cast<i64>(CublasLt::kWorkspaceBytes)});
  return blas_workspace_.raw();
}

// cuBLASLt reads a row-major weight in both directions: there is nothing to pack.
void CudaBackend::prepare_linear(Weight&) {}

void CudaBackend::linear_forward(const Tensor& y, const Tensor& x, const Weight& w) {
  const LinearPart part{y, &w};
  if (w.quantised()) {
    if (!linear_few_quantised(x, nullptr, {&part, 1}, stream())) quantised_forward(*this, y, x, w);
    return;
  }
  if (!linear_few_rows(x, nullptr, {&part, 1}, stream()))
    gemm(y, GradMode::Write, 1.0, x, false, w.values(), true);
}

bool CudaCacheKernels::linear_parts(const Tensor& x, const MadeInput* input,
                                    std::span<const LinearPart> parts) {
  const auto quantised = std::count_if(parts.begin(), parts.end(),
                                       [](const LinearPart& part) { return part.w->quantised(); });
  if (quantised == std::ssize(parts))
    return linear_few_quantised(x, input, parts, backend_.stream());
  return quantised == 0 && linear_few_rows(x, input, parts, backend_.stream());
}

void CudaBackend::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy,
                                    const Weight& w) {
  if (w.quantised()) return quantised_backward_x(*this, dx, mode, dy, w);
  gemm(dx, mode, 1.0, dy, false, w.values(), false);
}

void CudaBackend::matmul_nt(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                            const Tensor& b, const Tensor& addend) {
  if (!addend) return gemm(c, mode, alpha, a, false, b, true);
  check(mode == GradMode::Write, "matmul_nt: an addend and an accumulating mode");
  Gemm g{.transpose_b = true,
         .accumulate = true,
         .in = a.dtype(),
         .out = c.dtype(),
         .m = c.rows(),
         .n = c.cols(),
         .k = a.cols(),
         .lda = a.ld(),
         .ldb = b.ld(),
         .ldc = c.ld(),
         .ld_addend = addend.ld()};
  if (g.k > 128 && g.m > 0 && g.n > 0 &&
      blas_.run(g, c.raw(), static_cast<float>(alpha), a.raw(), b.raw(), addend.raw(),
                blas_workspace(), stream()))
    return;
  gemm(c, mode, alpha, a, false, b, true);
  add(c, addend, c);
}

void CudaBackend::matmul_nn(const Tensor& c, GradMode mode, double alpha, const Tensor& a,
                            const Tensor& b) {
  gemm(c, mode, alpha, a, false, b, false);
}

void CudaBackend::matmul_tn(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                            const Tensor& b) {
  gemm(dw, mode, alpha, a, true, b, false);
}

}  // namespace lk
