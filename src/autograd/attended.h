// What attention's forward makes, and how a checkpoint keeps it: attention is then never computed
// twice. See Note [Recompute ladder] in nn/recompute.h.
#pragma once

#include <functional>
#include <vector>

#include "autograd/checkpoint.h"

namespace lk {

struct Attended {
  Tensor o, lse;  // (T,H*D), (H,T)
};

// The outputs of every attention in a function that runs twice. The first run, on a tape without
// gradients, leaves them here in the order of its calls; the second one, which records, takes them.
// With `offloads`, which stays as long, o waits in host memory; lse is small and does not.
class KeptAttention {
 public:
  explicit KeptAttention(Offloads* offloads) : offloads_(offloads) {}
  void leave(const Attended& a);
  // Nothing stays behind: the second run's nodes hold the only handles.
  Attended take();

 private:
  struct Kept {
    Attended a;
    std::size_t sent;  // o's number, with offloads
  };
  Offloads* offloads_;
  std::vector<Kept> kept_;
  std::size_t next_ = 0;
};

// attention_forward() of q (T,H*D), k and v (T,G*D), with `margin` columns behind o's rows; then
// `finish`, if it is given, changes o and lse in place. Where tape.kept() has both from an earlier
// run, nothing is computed.
Attended attend(const Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v,
                const AttentionShape& shape, const Segments& segments, std::int64_t margin = 0,
                const std::function<void(const Attended&)>& finish = {});

}  // namespace lk
