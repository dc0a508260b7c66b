// Many copies in one launch: gradients into the buffer that an exchange sends, new values out of it, and
// copies in the compute dtype.
//
// Maths      y = x for each copy, rounded once where y is BF16: the bits of CudaBackend::copy()
// Shapes     x flat F32; y F32 or BF16 with as many elements, flat or a matrix with a row stride
// Plan       LoRA's gradients are hundreds of small matrices: a launch for each takes longer than its copy.
//            Tables of up to 384 copies (slot_table.cuh), one for each dtype of y; a block copies 4096
//            elements, four at a time where addresses, widths and strides allow it, else one by one. That is
//            a choice for each copy: one odd matrix does not slow the others down.
// Bytes      4 read and 4 (2) written per element
// Limits     no y overlaps another or an x. A y with a row stride has fewer than 2^31 elements
#include "cuda/cuda_backend.h"
#include "cuda/pack.cuh"
#include "cuda/slice_kernels.h"
#include "cuda/slot_table.cuh"

namespace lk {
namespace {

constexpr int kWide = 4;

template <class T>
struct CopySlot {
  T* to;
  const float* from;
  i64 numel;
  i64 ld;              // distance of to's rows
  std::uint32_t cols;  // of to's rows; 0: it is flat
  bool wide;           // kWide elements at a time
  __device__ __forceinline__ T* at(i64 i) const {
    if (cols == 0) return to + i;
    const auto flat = static_cast<std::uint32_t>(i);
    return to + flat / cols * ld + flat % cols;
  }
};
static_assert(sizeof(SlotTable<CopySlot<float>>) <= 32764, "kernel parameters end at 32764 bytes");

template <class T>
__global__ void __launch_bounds__(kSlotThreads)
    copy_many_kernel(const __grid_constant__ SlotTable<CopySlot<T>> table) {
  const int s = slot_of_block(table);
  const CopySlot<T>& slot = table.slots[s];
  const i64 begin = (static_cast<i64>(blockIdx.x) - table.first_chunk[s]) * kSlotChunk;
  const i64 end = min(slot.numel, begin + kSlotChunk);
  i64 rest = begin;  // the first element that is copied alone
  if (slot.wide) {
    rest = begin + (end - begin) / kWide * kWide;
    for (i64 i = begin + threadIdx.x * kWide; i < rest; i += kSlotThreads * kWide) {
      float x[kWide];
      load_pack<kWide>(slot.from + i, x);
      store_pack<kWide>(slot.at(i), x);
    }
  }
  for (i64 i = rest + threadIdx.x; i < end; i += kSlotThreads)
    *slot.at(i) = from_float<T>(slot.from[i]);
}

template <class T>
CopySlot<device_t<T>> slot_of(const SliceKernels::Copy& copy) {
  const Tensor &y = copy.to, &x = copy.from;
  check(x.contiguous() && x.numel() == y.numel(), "cuda copy_many: ", x.shape(), " into ",
        y.shape());
  const bool flat = y.contiguous();
  check(flat || (y.numel() <= INT32_MAX && y.cols() > 0), "cuda copy_many: ", y.shape(),
        " with a row stride");
  const auto starts_at = [](const Tensor& t, std::size_t multiple) {
    return reinterpret_cast<std::uintptr_t>(t.raw()) % multiple == 0;
  };
  const bool whole_packs = flat || (y.cols() % kWide == 0 && y.ld() % kWide == 0);
  return {.to = pointer<T>(y),
          .from = x.data<float>(),
          .numel = x.numel(),
          .ld = y.ld(),
          .cols = flat ? 0 : static_cast<std::uint32_t>(y.cols()),
          .wide = whole_packs && starts_at(x, kWide * sizeof(float)) &&
                  starts_at(y, kWide * sizeof(device_t<T>))};
}

__global__ void copy_to_host_kernel(std::uint32_t* to, const std::uint32_t* from, int n) {
  wait_for_previous();  // Note [Early launches]
  for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}

}  // namespace

void copy_to_host(void* pinned, const Tensor& x, cudaStream_t stream) {
  launch_early("copy_to_host", copy_to_host_kernel, dim3(1), dim3(128), 0, stream,
               static_cast<std::uint32_t*>(pinned), static_cast<const std::uint32_t*>(x.raw()),
               static_cast<int>(x.bytes() / sizeof(std::uint32_t)));
}

void CudaSliceKernels::copy_many(std::span<const Copy> copies) {
  for (const Copy& copy : copies)
    check(copy.to.dtype() == DType::F32 || copy.to.dtype() == DType::BF16,
          "cuda copy_many: into f32 and bf16, not ", dtype_name(copy.to.dtype()));
  for (const DType dtype : {DType::F32, DType::BF16}) {
    std::vector<Copy> of_dtype;
    for (const Copy& copy : copies)
      if (copy.to.dtype() == dtype) of_dtype.push_back(copy);
    dispatch_device(dtype, [&]<class T>() {
      using Slot = CopySlot<device_t<T>>;
      for_each_table<Slot>(of_dtype, slot_of<T>, [&](const SlotTable<Slot>& table, i64 chunks) {
        launch("copy_many", copy_many_kernel<device_t<T>>, grid_of(chunks), dim3(kSlotThreads), 0,
               backend_.stream(), table);
      });
    });
  }
}

}  // namespace lk
