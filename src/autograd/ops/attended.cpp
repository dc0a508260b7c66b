#include "autograd/attended.h"

namespace lk {

void KeptAttention::leave(const Attended& a) {
  if (offloads_)
    kept_.push_back({{Tensor(), a.lse}, offloads_->send(a.o)});
  else
    kept_.push_back({a, 0});
}

Attended KeptAttention::take() {
  check(next_ < kept_.size(), "recompute: the second run attends more often than the first");
  Kept& kept = kept_[next_++];
  if (offloads_) kept.a.o = offloads_->take(kept.sent);
  return std::move(kept.a);
}

Attended attend(const Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v,
                const AttentionShape& shape, const Segments& segments, std::int64_t margin,
                const std::function<void(const Attended&)>& finish) {
  KeptAttention* kept = tape.kept();
  if (kept && tape.recording()) {
    Attended a = kept->take();
    a.o.expect(q.shape(), "recompute: attention's kept output");
    return a;
  }
  const Attended a{tape.activation(q.dtype(), q.shape(), margin),
                   tape.activation(stat_dtype(q.dtype()), {shape.n_heads, q.rows()})};
  tape.backend().attention_forward(a.o, a.lse, q, k, v, shape, segments, segments);
  if (finish) finish(a);
  if (kept) kept->leave(a);
  return a;
}

}  // namespace lk
