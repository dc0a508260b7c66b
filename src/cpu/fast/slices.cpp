#include "cpu/fast/slices.h"

#include <algorithm>
#include <cstring>

#include "cpu/fast/simd.h"
#include "cpu/kernels.h"
#include "tensor/backend.h"

namespace lk::cpu {
namespace {

template <class A>
LK_SIMD double sum_squares_piece(const A* x, std::int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j)
    total += static_cast<double>(load(x[j])) * static_cast<double>(load(x[j]));
  return total;
}

class CpuSliceKernels final : public SliceKernels {
 public:
  CpuSliceKernels() : SliceKernels(kPiece, DType::F64) {}

  void square_sums(const Tensor& sums, std::span<const Tensor> tensors) override {
    const std::vector<double> all = cpu::square_sums(tensors);
    sums.expect({static_cast<std::int64_t>(all.size())}, "square_sums: sums (n)");
    std::copy(all.begin(), all.end(), sums.data<double>());
  }
  void add_square_sums(const Tensor& out, const Tensor& sums) override {
    double total = 0;
    for (const double x : std::span(sums.data<double>(), static_cast<std::size_t>(sums.numel())))
      total += x;
    dispatch_float(out.dtype(), [&]<class O>() { *out.data<O>() = rounded<O>(total); });
  }
  // What lies flat on both sides is shared out among the threads in pieces; the rest goes one by one.
  void copy_many(std::span<const Copy> copies) override {
    struct Piece {
      std::byte* to;
      const std::byte* from;
      std::size_t bytes;
    };
    std::vector<Piece> pieces;
    for (const auto& [to, from] : copies) {
      check(from.contiguous() && from.numel() == to.numel(), "copy_many: ", from.shape(), " into ",
            to.shape());
      if (to.dtype() != from.dtype() || !to.contiguous()) {
        to.backend().copy(to, from.reshape(to.shape()));
        continue;
      }
      constexpr std::size_t kBytes = kPiece * sizeof(float);
      for (std::size_t begin = 0; begin < from.bytes(); begin += kBytes)
        pieces.push_back({static_cast<std::byte*>(to.raw()) + begin,
                          static_cast<const std::byte*>(from.raw()) + begin,
                          std::min(kBytes, from.bytes() - begin)});
    }
    const auto n = static_cast<std::int64_t>(pieces.size());
    parallel_for(n, n * kPiece, [&](std::int64_t i) {
      const Piece& p = pieces[static_cast<std::size_t>(i)];
      std::memcpy(p.to, p.from, p.bytes);
    });
  }
};

}  // namespace

std::vector<double> square_sums(std::span<const Tensor> tensors) {
  struct Piece {
    const Tensor* tensor;
    std::int64_t begin;
  };
  std::vector<Piece> pieces;
  for (const Tensor& x : tensors) {
    check(x.contiguous(), "sum_squares: needs contiguous tensors");
    for (std::int64_t begin = 0; begin < x.numel(); begin += kPiece) pieces.push_back({&x, begin});
  }
  std::vector<double> sums(pieces.size());
  const auto n = static_cast<std::int64_t>(pieces.size());
  parallel_for(n, n * kPiece, [&](std::int64_t i) {
    const auto& [x, begin] = pieces[static_cast<std::size_t>(i)];
    dispatch_float(x->dtype(), [&, x = x, begin = begin]<class T>() {
      sums[static_cast<std::size_t>(i)] =
          sum_squares_piece(x->data<T>() + begin, std::min(kPiece, x->numel() - begin));
    });
  });
  return sums;
}

std::unique_ptr<SliceKernels> make_slice_kernels() { return std::make_unique<CpuSliceKernels>(); }

}  // namespace lk::cpu
