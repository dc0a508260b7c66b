// Products with frozen weights through oneDNN, on processors where its kernels beat our tiles:
// AVX-512 for F32, AVX-512 BF16 or AMX for BF16.
#pragma once

#include <memory>

#include "tensor/backend.h"

namespace lk::cpu {

// Whether oneDNN is the better choice for this dtype on this processor.
bool prefers_onednn(DType dtype);

// How long sums of `n` numbers are there: note [Sums one short].
std::int64_t onednn_sums(std::int64_t n, DType dtype);

// The sizes of a packed BF16 weight (N,K), for memory plans. Throws Error if oneDNN has no such
// product on this processor.
struct PackedBytes {
  std::int64_t forward, backward;
};
PackedBytes onednn_packed_bytes(std::int64_t N, std::int64_t K);

// A frozen weight w (N,K) in the form that oneDNN wants: F32 unchanged; BF16 packed twice, in the
// layouts that the forward and the backward product prefer (AMX multiplies tiles faster than plain
// rows can be read).
class OnednnLinear : public PackedWeight {
 public:
  // Packed copies are allocated as Workspace of `backend`.
  OnednnLinear(Backend& backend, const Tensor& w);
  ~OnednnLinear() override;

  // y (T,N) = x (T,K) wᵀ
  void forward(const Tensor& y, const Tensor& x) const;
  // dx (T,K) (+)= dy (T,N) w
  void backward(const Tensor& dx, GradMode mode, const Tensor& dy) const;

 private:
  struct Direction;
  std::unique_ptr<Direction> forward_, backward_;
};

// The same products with a weight w (N,K) as it lies, contiguous, for values that do not stay: those
// of a quantised weight are made dense for each product.
void onednn_forward(const Tensor& y, const Tensor& x, const Tensor& w);
void onednn_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& w);

}  // namespace lk::cpu
