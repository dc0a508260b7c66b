#include "autograd/attended.h"

namespace lk {

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
