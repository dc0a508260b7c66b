// Attention's entry points: which kernels a call gets, and delta, the row sums that backward starts
// from.
//
// One query per document: attention/decode.cu. Otherwise, in BF16 with 16-byte aligned rows, tensor
// cores; head sizes are padded with zeros to those of the kernels:
//   head size    compute capability 9.0    other GPUs; forward of few queries per document
//   up to 56     mma.sync, 64              mma.sync, 64
//   64           wgmma, 64                 mma.sync, 64
//   72 to 128    wgmma, 128                mma.sync, 128
//   136 to 256   wgmma, 256                mma.sync, 256
// wgmma is in attention/{forward,backward}_wgmma*.cu and, where documents are long, in
// attention/backward_one_pass.cu; mma.sync in attention/{forward,backward}.cu. Everything else: FP32
// arithmetic (attention/plain.cu).
#include "cuda/attention/tiles.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/scratch.h"

namespace lk {
namespace {

// delta (H,T) = rowsum(dout * o): LANES lanes per row and head, N elements at a time. dout and o
// are read once.
template <class T, int N, int LANES>
__global__ void __launch_bounds__(256)
    attention_delta_kernel(float* delta, Matrix<const T> dout, Matrix<const T> o, i64 rows,
                           int n_heads, int head_dim) {
  i64 row = blockIdx.x;
  int lane = threadIdx.x % LANES, n_groups = blockDim.x / LANES;
  for (int first = 0; first < n_heads; first += n_groups) {  // uniform over a warp
    int head = first + threadIdx.x / LANES;
    i64 col = static_cast<i64>(head) * head_dim;
    float sum = 0.0f;
    for (int d = lane * N; d < head_dim && head < n_heads; d += LANES * N) {
      float x[N], y[N];
      load_pack<N>(dout.at(row, col + d), x);
      load_pack<N>(o.at(row, col + d), y);
#pragma unroll
      for (int i = 0; i < N; ++i) sum = fmaf(x[i], y[i], sum);
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0 && head < n_heads) delta[head * rows + row] = sum;
  }
}

// Whether the current GPU runs code for sm_90a and this build contains it (gpu_arch in
// meson_options.txt).
bool has_wgmma() {
#ifdef LK_CUDA_SM90A
  int device = 0, major = 0, minor = 0;
  cuda_check(cudaGetDevice(&device), "asking for the current GPU");
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "reading the compute capability");
  cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
             "reading the compute capability");
  return major == 9 && minor == 0;
#else
  return false;
#endif
}

enum class Kernels { Plain, Mma, Wgmma };

template <class... Tensors>
Kernels kernels_for(int head_dim, const Tensor& q, const Tensors&... others) {
  if (q.dtype() != DType::BF16 || head_dim > 256 || !packable(8, head_dim, q, others...))
    return Kernels::Plain;
  return head_dim >= 64 && has_wgmma() ? Kernels::Wgmma : Kernels::Mma;
}

}  // namespace

void CudaBackend::attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                    const Segments& q_seg, const KeyRows& k_rows) {
  if (q_seg.total() == 0) return;
  AttentionForward a{o, lse, q, k, v, shape, q_seg, k_rows};
  cudaStream_t s = stream();
  if (attention_decode(a, *this)) return;
  bool few_queries = q_seg.total() < 32 * q_seg.count();  // decoding: most of a tile is empty
  Kernels kernels = kernels_for(shape.head_dim, q, k, v, o);
  if (kernels == Kernels::Plain)
    attention_forward_plain(a, s);
  else if (kernels == Kernels::Mma || few_queries)
    attention_forward_mma(a, s);
  else {
    a.tickets = empty(Tag::Workspace, DType::I32, {1});
    attention_forward_wgmma(a, s);
  }
}

void CudaBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                     const Tensor& dout, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const Tensor& o, const Tensor& lse,
                                     const AttentionShape& shape, const Segments& seg,
                                     const Rotation* rotation) {
  if (seg.total() == 0) return;
  Tensor delta = empty(Tag::Workspace, DType::F32, {shape.n_heads, seg.total()});
  cudaStream_t s = stream();
  dispatch_device(q.dtype(), [&]<class T>() {
    auto go = [&]<int N, int LANES>() {
      launch("attention_delta", attention_delta_kernel<device_t<T>, N, LANES>, grid_of(seg.total()),
             dim3(256), 0, s, delta.data<float>(), const_matrix<T>(dout), const_matrix<T>(o),
             seg.total(), shape.n_heads, shape.head_dim);
    };
    if (q.dtype() == DType::BF16 && shape.head_dim % 64 == 0 &&
        packable(8, shape.head_dim, dout, o))
      go.template operator()<8, 8>();
    else
      go.template operator()<1, 32>();
  });
  AttentionBackward a{dq, dk, dv, dout, q, k, v, lse, delta, shape, seg, nullptr};
  bool turned_back = rotation == nullptr;
  switch (kernels_for(shape.head_dim, q, k, v, dout, dq, dk, dv)) {
    case Kernels::Plain:
      attention_backward_plain(a, s);
      break;
    case Kernels::Mma:
      attention_backward_mma(a, s);
      break;
    case Kernels::Wgmma:
      a.rotation = wgmma_rotates(shape.head_dim) ? rotation : nullptr;
      if (const BackwardSums sums = backward_sums(q.dtype(), shape, seg.total(), seg.count());
          sums.slots > 0) {
        a.turns = empty(Tag::Workspace, DType::I32, {sums.slots + 1});
        a.sums = empty(Tag::Workspace, DType::F32, {sums.slots, sums.queries * sums.width});
        attention_backward_one_pass(a, s);
      } else {
        attention_backward_wgmma(a, s);
      }
      turned_back |= a.rotation != nullptr;
  }
  if (turned_back) return;
  for (const Tensor& d : {dq, dk})
    rope(d, GradMode::Write, d, rotation->table, rotation->positions, shape.head_dim, true);
}

}  // namespace lk
