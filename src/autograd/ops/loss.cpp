#include <algorithm>

#include "autograd/ops.h"
#include "autograd/ops/chunks.h"
#include "autograd/ops/loss_node.h"
#include "autograd/work.h"
#include "tensor/dense_scratch.h"

namespace lk {
namespace {

// Note [Chunked loss]: logits (n,V) are the largest matrix of a step and are read only by their own
// softmax. So each chunk of rows goes through the head, cross-entropy and back through the head
// while it is at hand, its logits overwritten by scale (softmax - q); only dx (n,C) is kept.
// All chunks use one buffer. The losses of all rows are then summed in one pass, in an order that
// does not depend on the chunk size.
//
// Returns the losses (n) and writes to dx (n,C), if it is defined, the derivative of scale * their
// sum.
Tensor head_chunks(Backend& backend, const Tensor& dx, const Tensor& x, const Weight& head,
                   const Tensor& targets, const LossScale& scale, std::int64_t chunk_rows) {
  auto [n, C] = x.dims<2>("head_loss: x (n,C)");
  check(head.defined() && head.shape().rank() == 2, "head_loss: head (V,C) is missing");
  const std::int64_t V = head.shape()[0];
  head.expect({V, C}, "head_loss: head (V,C)");
  targets.expect({n}, "head_loss: targets (n)");
  check(chunk_rows > 0, "head_loss: chunks of ", chunk_rows, " rows");

  const std::int64_t most = equal_chunk(n, chunk_rows);
  DenseWeight w(backend, head);  // for all chunks
  Tensor losses = backend.empty(Tag::Workspace, stat_dtype(x.dtype()), {n});
  Tensor buffer = backend.empty(Tag::Workspace, x.dtype(), {most, V});
  for (std::int64_t begin = 0; begin < n; begin += most) {
    const std::int64_t end = std::min(n, begin + most);
    Tensor logits = buffer.slice_rows(0, end - begin);
    w.linear_forward(logits, x.slice_rows(begin, end));
    backend.cross_entropy(losses.slice_rows(begin, end), logits, targets.slice_rows(begin, end),
                          dx.defined(), scale.alpha, scale.factor, scale.smoothing);
    if (dx.defined()) w.linear_backward_x(dx.slice_rows(begin, end), GradMode::Write, logits);
  }
  return losses;
}

}  // namespace

Tensor head_losses(const Tensor& x, const Weight& head, const Tensor& targets,
                   std::int64_t chunk_rows) {
  return head_chunks(x.backend(), {}, x, head, targets, {}, chunk_rows);
}

Var head_loss(Tape& tape, const Var& x, const Weight& head, const Tensor& targets,
              const LossScale& scale, std::int64_t chunk_rows) {
  const bool wants = tape.wants(x);
  Tensor dx;
  if (wants) dx = tape.activation(x.dtype(), x.value().shape());
  Tensor losses = head_chunks(tape.backend(), dx, x.value(), head, targets, scale, chunk_rows);
  Tensor loss = tape.activation(losses.dtype(), {1});
  tape.backend().sum(loss, GradMode::Write, scale.alpha, losses);
  if (scale.factor.defined()) tape.backend().scale(loss, GradMode::Write, 1.0, scale.factor, loss);
  if (!wants) return tape.constant(std::move(loss));
  return tape.record<LossNode>(std::move(loss), x, std::move(dx));
}

Work work::cross_entropy(const Tensor&, const Tensor& logits, const Tensor&, bool gradient, double,
                         const Tensor&, double) {
  return {OpFamily::Loss, 0, size(logits) * (gradient ? 2 : 1)};
}

Work work::sum(const Tensor&, GradMode, double, const Tensor& x) {
  return {OpFamily::Loss, 0, size(x)};
}

}  // namespace lk
