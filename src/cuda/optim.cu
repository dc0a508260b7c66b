// The optimizer's two kernels, each over all parameters in one launch.
//
// Maths      norm = sqrt(sum of all g^2);  c = min(1, max_norm / (norm + 1e-6));  g <- c g
//            m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//            p = p (1 - lr wd) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
// Shapes     flat F32 buffers, `numel` elements each; a BF16 copy of p is refreshed in the same
//            pass
// Plan       LoRA has hundreds of small tensors: a launch for each would cost more than the work. A
//            table of all buffers travels as the kernel's parameter (up to 32 KiB, no upload, fixed
//            once captured in a graph); tensors are cut into chunks of 4096 elements, one block
//            each, which finds its tensor by binary search. More than kMaxSlots tensors: several
//            launches.
// Bytes      sum_squares 4 per element; adamw 16 read and 12 (14 with the copy) written
// Numbers    the squared norm is summed chunk by chunk in table order. If it is not finite, adamw
//            leaves every buffer as it is: the decision is taken on the device, without a copy to
//            the host.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/pack.cuh"
#include "cuda/reduce.cuh"
#include "cuda/slice_kernels.h"
#include "cuda/slot_table.cuh"

namespace lk {
namespace {

struct NormSlot {
  const void* data;
  i64 numel;
  bool is_bf16;
};
struct UpdateSlot {
  float *value, *m, *v;
  const float* grad;
  __nv_bfloat16* compute;  // or null
  i64 numel;
  float weight_decay, lr_factor;
  std::uint32_t cols;  // of the copy; its rows are compute_ld elements apart
  i64 compute_ld;
};
static_assert(sizeof(SlotTable<UpdateSlot>) + 64 <= 32764, "kernel parameters end at 32764 bytes");

// partial[chunk] = sum of squares of the chunk
__global__ void __launch_bounds__(kSlotThreads)
    sum_squares_kernel(const __grid_constant__ SlotTable<NormSlot> table, float* partial) {
  int s = slot_of_block(table);
  const NormSlot& slot = table.slots[s];
  i64 begin = (static_cast<i64>(blockIdx.x) - table.first_chunk[s]) * kSlotChunk;
  i64 end = min(slot.numel, begin + kSlotChunk);
  float sum = 0.0f;
  for (i64 i = begin + threadIdx.x; i < end; i += kSlotThreads) {
    float x = slot.is_bf16 ? to_float(static_cast<const __nv_bfloat16*>(slot.data)[i])
                           : static_cast<const float*>(slot.data)[i];
    sum = fmaf(x, x, sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out = partial[0] + partial[1] + ..., one block, in a fixed order
__global__ void __launch_bounds__(1024)
    sum_partials_kernel(float* out, const float* partial, i64 n) {
  float sum = 0.0f;
  for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

struct UpdateConstants {
  float lr, beta1, beta2, eps;
  float step_size;            // lr / (1 - beta1^t)
  float inverse_sqrt_second;  // 1 / sqrt(1 - beta2^t)
  float max_norm;
  const float* rates;  // null: lr, step_size and inverse_sqrt_second above
};

__global__ void __launch_bounds__(kSlotThreads)
    adamw_kernel(const __grid_constant__ SlotTable<UpdateSlot> table,
                 const __grid_constant__ UpdateConstants c, const float* norm_sq) {
  float clip = 1.0f;
  if (norm_sq) {
    float squared = *norm_sq;
    if (!isfinite(squared)) return;
    if (c.max_norm > 0.0f) clip = fminf(1.0f, c.max_norm / (sqrtf(squared) + 1e-6f));
  }
  float lr = c.lr, step_size = c.step_size, inverse_sqrt_second = c.inverse_sqrt_second;
  if (c.rates) lr = c.rates[0], step_size = c.rates[1], inverse_sqrt_second = c.rates[2];
  int s = slot_of_block(table);
  const UpdateSlot& slot = table.slots[s];
  lr *= slot.lr_factor, step_size *= slot.lr_factor;
  float keep = 1.0f - lr * slot.weight_decay;
  i64 begin = (static_cast<i64>(blockIdx.x) - table.first_chunk[s]) * kSlotChunk;
  i64 end = min(slot.numel, begin + kSlotChunk);
  for (i64 i = begin + threadIdx.x; i < end; i += kSlotThreads) {
    float g = slot.grad[i] * clip;
    float m = c.beta1 * slot.m[i] + (1.0f - c.beta1) * g;
    float v = c.beta2 * slot.v[i] + (1.0f - c.beta2) * g * g;
    float p = slot.value[i] * keep - step_size * m / (sqrtf(v) * inverse_sqrt_second + c.eps);
    slot.m[i] = m;
    slot.v[i] = v;
    slot.value[i] = p;
    if (slot.compute) {
      auto flat = static_cast<std::uint32_t>(i);
      slot.compute[flat / slot.cols * slot.compute_ld + flat % slot.cols] =
          from_float<__nv_bfloat16>(p);
    }
  }
}

}  // namespace

void CudaBackend::sum_squares(const Tensor& out, std::span<const Tensor> tensors) {
  i64 total = 0;
  for (const Tensor& t : tensors) total += ceil_div(t.numel(), kSlotChunk);
  const Tensor partial = empty(Tag::Workspace, DType::F32, {total});
  slice_kernels_->square_sums(partial, tensors);
  slice_kernels_->add_square_sums(out, partial);
}

void CudaSliceKernels::square_sums(const Tensor& sums, std::span<const Tensor> tensors) {
  i64 total = 0, done = 0;
  for (const Tensor& t : tensors) total += ceil_div(t.numel(), kSlotChunk);
  sums.expect({total}, "square_sums: sums (n)");
  auto slot = [](const Tensor& t) {
    check(t.contiguous() && (t.dtype() == DType::F32 || t.dtype() == DType::BF16),
          "cuda sum_squares: needs contiguous f32 or bf16");
    return NormSlot{t.raw(), t.numel(), t.dtype() == DType::BF16};
  };
  for_each_table<NormSlot>(tensors, slot, [&](const SlotTable<NormSlot>& table, i64 chunks) {
    launch("sum_squares", sum_squares_kernel, grid_of(chunks), dim3(kSlotThreads), 0,
           backend_.stream(), table, sums.data<float>() + done);
    done += chunks;
  });
}

void CudaSliceKernels::add_square_sums(const Tensor& out, const Tensor& sums) {
  launch("sum_partials", sum_partials_kernel, dim3(1), dim3(1024), 0, backend_.stream(),
         out.data<float>(), sums.data<float>(), sums.numel());
}

void CudaBackend::adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
                        const Tensor& norm_sq) {
  double t = static_cast<double>(step.step);
  double first = 1.0 - std::pow(static_cast<double>(step.beta1), t);
  double second = 1.0 - std::pow(static_cast<double>(step.beta2), t);
  UpdateConstants constants{.lr = step.lr,
                            .beta1 = step.beta1,
                            .beta2 = step.beta2,
                            .eps = step.eps,
                            .step_size = static_cast<float>(step.lr / first),
                            .inverse_sqrt_second = static_cast<float>(1.0 / std::sqrt(second)),
                            .max_norm = step.max_norm,
                            .rates = step.rates ? step.rates.data<float>() : nullptr};
  const float* norm = norm_sq ? norm_sq.data<float>() : nullptr;
  auto slot = [](const AdamWSlot& s) {
    check(s.value.numel() <= INT32_MAX, "cuda adamw: tensor too large");
    return UpdateSlot{.value = s.value.data<float>(),
                      .m = s.m.data<float>(),
                      .v = s.v.data<float>(),
                      .grad = s.grad.data<float>(),
                      .compute = s.compute ? pointer<bf16>(s.compute) : nullptr,
                      .numel = s.value.numel(),
                      .weight_decay = s.weight_decay,
                      .lr_factor = s.lr_factor,
                      .cols = static_cast<std::uint32_t>(s.compute ? s.compute.cols() : 1),
                      .compute_ld = s.compute ? s.compute.ld() : 0};
  };
  for_each_table<UpdateSlot>(slots, slot, [&](const SlotTable<UpdateSlot>& table, i64 chunks) {
    launch("adamw", adamw_kernel, grid_of(chunks), dim3(kSlotThreads), 0, stream(), table,
           constants, norm);
  });
}

}  // namespace lk
