// Elementwise work over a matrix: the one loop that all such kernels share.
//
// An Op is a struct passed by value with `static constexpr int kWidth` and
//   __device__ void operator()(i64 row, i64 col) const      // handles columns [col, col + kWidth)
// and `using WritesWeights = void` if it may write weights. Threads of a block lie along the
// columns first, as many as the row needs (a power of two), so neither narrow nor wide rows waste
// threads, and no index is ever divided. Contiguous tensors are passed as one long row.
#pragma once

#include <initializer_list>

#include "cuda/pack.cuh"

namespace lk {

template <class Op>
__global__ void __launch_bounds__(256) rowwise_kernel(i64 rows, i64 cols, Op op) {
  wait_for_previous();  // Note [Early launches]
  i64 row_step = static_cast<i64>(gridDim.y) * blockDim.y;
  i64 col_step = static_cast<i64>(gridDim.x) * blockDim.x * Op::kWidth;
  i64 first_row = static_cast<i64>(blockIdx.y) * blockDim.y + threadIdx.y;
  i64 first_col = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) * Op::kWidth;
  for (i64 row = first_row; row < rows; row += row_step)
    for (i64 col = first_col; col < cols; col += col_step) op(row, col);
}

// Runs `op` over rows x cols; cols must be a multiple of Op::kWidth.
template <class Op>
void launch_rowwise(const char* name, i64 rows, i64 cols, cudaStream_t stream, const Op& op) {
  if (rows == 0 || cols == 0) return;
  i64 packs = cols / Op::kWidth;
  unsigned x = 1;
  while (x < 256 && x < packs) x *= 2;
  dim3 block(x, 256 / x);
  i64 blocks_x = std::min<i64>(ceil_div(packs, x), i64{1} << 30);
  i64 blocks_y = std::min<i64>(ceil_div(rows, block.y), 65535);
  dim3 grid = grid_of(blocks_x, blocks_y);
  if constexpr (requires { typename Op::WritesWeights; })
    launch(name, rowwise_kernel<Op>, grid, block, 0, stream, rows, cols, op);
  else
    launch_early(name, rowwise_kernel<Op>, grid, block, 0, stream, rows, cols, op);
}

// How a kernel walks tensors of one shape: as (rows, cols), or as one row if none has gaps.
struct Walk {
  i64 rows, cols;
  template <class... Tensors>
  explicit Walk(const Tensor& first, const Tensors&... others)
      : rows(first.rows()), cols(first.cols()) {
    check(((others.rows() == rows && others.cols() == cols) && ...), "an elementwise kernel for ",
          first.shape(), ": a tensor of another shape");
    if (first.contiguous() && (others.contiguous() && ...)) cols *= rows, rows = rows ? 1 : 0;
  }
};

}  // namespace lk
