// Attention's entry points: which kernels a call gets, and delta, the row sums that backward starts
// from.
//
// BF16 with a head size up to 128 and 16-byte aligned rows: tensor cores (attention_forward.cu,
// attention_backward.cu). Everything else: FP32 arithmetic (attention_plain.cu).
#include "cuda/attention_tiles.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/reduce.cuh"

namespace lk {
namespace {

// delta (H,T) = rowsum(dout * o): one warp per row and head. dout and o are read once.
template <class T>
__global__ void __launch_bounds__(256)
    attention_delta_kernel(float* delta, Matrix<const T> dout, Matrix<const T> o, i64 rows,
                           int n_heads, int head_dim) {
  i64 row = blockIdx.x;
  int lane = threadIdx.x % 32;
  for (int head = threadIdx.x / 32; head < n_heads; head += blockDim.x / 32) {
    i64 col = static_cast<i64>(head) * head_dim;
    float sum = 0.0f;
    for (int d = lane; d < head_dim; d += 32)
      sum = fmaf(to_float(*dout.at(row, col + d)), to_float(*o.at(row, col + d)), sum);
    sum = warp_sum(sum);
    if (lane == 0) delta[head * rows + row] = sum;
  }
}

template <class... Tensors>
bool suits_tensor_cores(int head_dim, const Tensor& q, const Tensors&... others) {
  return q.dtype() == DType::BF16 && head_dim <= 128 && packable(8, head_dim, q, others...);
}

}  // namespace

void CudaBackend::attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                    const Segments& q_seg, const Segments& k_seg) {
  if (q_seg.total() == 0) return;
  AttentionForward a{o, lse, q, k, v, shape, q_seg, k_seg};
  if (suits_tensor_cores(shape.head_dim, q, k, v, o))
    attention_forward_mma(a, stream());
  else
    attention_forward_plain(a, stream());
}

void CudaBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                     const Tensor& dout, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const Tensor& o, const Tensor& lse,
                                     const AttentionShape& shape, const Segments& seg) {
  if (seg.total() == 0) return;
  Tensor delta = empty(Tag::Workspace, DType::F32, {shape.n_heads, seg.total()});
  dispatch_device(q.dtype(), [&]<class T>() {
    launch("attention_delta", attention_delta_kernel<device_t<T>>, grid_of(seg.total()), dim3(256),
           0, stream(), delta.data<float>(), const_matrix<T>(dout), const_matrix<T>(o), seg.total(),
           shape.n_heads, shape.head_dim);
  });
  AttentionBackward a{dq, dk, dv, dout, q, k, v, lse, delta, shape, seg};
  if (suits_tensor_cores(shape.head_dim, q, k, v, dout, dq, dk, dv))
    attention_backward_mma(a, stream());
  else
    attention_backward_plain(a, stream());
}

}  // namespace lk
