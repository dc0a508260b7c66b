// What the kernels for frozen projections of a few rows share: up to three weights, whose rows are
// numbered consecutively.
#pragma once

#include <span>

#include "cuda/gated.cuh"
#include "cuda/pack.cuh"
#include "tensor/cache_kernels.h"

namespace lk {

constexpr int kMostFewParts = 3;
constexpr int kFewRows = 16;  // of w in a block's care, in BF16

template <class T>
struct FewPart {
  Matrix<T> y;
  Matrix<const T> w, addend;  // addend.data may be null: zero
  i64 begin, end;             // its rows in that numbering
};
template <class T>
struct FewParts {
  FewPart<T> part[kMostFewParts];
  int n;
  i64 rows;  // of all parts; each begins at a multiple of a block's or warp's rows

  // The part that `row` lies in; `row` is such a multiple.
  __device__ __forceinline__ FewPart<T> of(i64 row) const {
    FewPart<T> p = part[0];
#pragma unroll
    for (int i = 1; i < kMostFewParts; ++i)
      if (i < n && row >= part[i].begin) p = part[i];
    return p;
  }
};

// y = the sums of a block's warps, in their order, and the addend; executed by a whole block. Each warp
// holds kFewRows rows of w times 8 NT rows of x, in C tiles (mma.cuh), of which the first n_x count.
//   p        y, and an addend or null, of BF16
//   partial  WARPS * 8 NT * kFewRows floats of shared memory, which nobody reads any more
//   row0, n  the block's first row of the part, and the part's rows
template <int NT, int WARPS, class Part, class Row>
__device__ __forceinline__ void store_few(const Part& p, float* partial, const float (&sum)[NT][4],
                                          Row row0, Row n, int n_x) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  auto at = [](int w, int m, int r) { return (w * 8 * NT + m) * kFewRows + r; };
#pragma unroll
  for (int nt = 0; nt < NT; ++nt)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial[at(warp, 8 * nt + 2 * t + i % 2, g + i / 2 * 8)] = sum[nt][i];
  __syncthreads();
  for (int i = threadIdx.x; i < n_x * kFewRows; i += WARPS * 32) {
    const int m = i / kFewRows, r = i % kFewRows;
    if (row0 + r >= n) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) total += partial[at(w, m, r)];
    if (p.addend.data) total += to_float(*p.addend.at(m, row0 + r));
    *p.y.at(m, row0 + r) = from_float<__nv_bfloat16>(total);
  }
}

// MadeInput, in BF16, as kernels read it: what they make of x where they read it. What they multiply is left in
// memory too.
struct RowInput {
  const __nv_bfloat16* gain;  // of an RMSNorm; null: none
  float eps;
  Matrix<const __nv_bfloat16> gate;  // act(gate) * x; data null: none
  bool gelu;                         // act: GELU's tanh form, else SiLU
  Matrix<__nv_bfloat16> made;

  __device__ __forceinline__ float gated(float gate, float up) const {
    return gelu ? lk::gated<__nv_bfloat16, GeluTanh>(gate, up)
                : lk::gated<__nv_bfloat16, Silu>(gate, up);
  }
};
// Fills `made`; all null if `input` is. False if kernels can't make it: not in BF16, not readable in packs of 8,
// another activation.
bool row_input(const Tensor& x, const MadeInput* input, RowInput& made);

// Fills `few` with the parts; T is the host's element type. Returns false if the parts do not suit
// such kernels: more than three, of another dtype, or not readable in packs of 16 bytes.
template <class T>
bool few_parts(const Tensor& x, std::span<const LinearPart> parts, int multiple,
               FewParts<device_t<T>>& few) {
  if (parts.empty() || parts.size() > kMostFewParts) return false;
  few = {.part = {}, .n = static_cast<int>(parts.size()), .rows = 0};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Tensor &w = parts[i].w->values(), &y = parts[i].y, &addend = parts[i].addend;
    const DType t = x.dtype();
    if (w.rows() < 1 || w.dtype() != t || y.dtype() != t || (addend && addend.dtype() != t) ||
        !packable(16 / static_cast<i64>(sizeof(T)), x.cols(), x, w))
      return false;
    FewPart<device_t<T>>& part = few.part[i];
    part = {matrix<T>(y), const_matrix<T>(w), {}, few.rows, few.rows + w.rows()};
    if (addend) part.addend = const_matrix<T>(addend);
    few.rows = ceil_div(part.end, multiple) * multiple;
  }
  return true;
}

// y = n wᵀ for parts of one quantised format, n (M,K) BF16 in rows of whole packs.
void linear_few_blocks(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream);
void linear_few_codes(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream);
// The same in one to four rows (integer_row.cuh, linear_row.cuh); false if these do not suit, with nothing done.
// Blocks: where `input` is not null, n is made of x on the way.
bool linear_row_blocks(const Tensor& x, const MadeInput* input, std::span<const LinearPart> parts,
                       cudaStream_t stream);
bool linear_row_codes(const Tensor& x, std::span<const LinearPart> parts, cudaStream_t stream);
// What kernels for few rows make of x, by one of its own.
void make_few_rows(const Tensor& x, const RowInput& input, cudaStream_t stream);

bool linear_few_rows_bf16(const Tensor& x, const MadeInput* input,
                          std::span<const LinearPart> parts, cudaStream_t stream);

}  // namespace lk
