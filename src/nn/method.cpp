#include "nn/method.h"

namespace lk {

std::int64_t Method::copy_bytes() const {
  std::int64_t bytes = 0;
  for (const Parameter* p : parameters())
    if (p->has_compute_copy() && p->compute().storage().tag() == Tag::Params)
      bytes += static_cast<std::int64_t>(p->compute().bytes());
  return bytes;
}

std::int64_t Method::n_parameters() const {
  std::int64_t n = 0;
  for (const Parameter* p : parameters()) n += p->numel();
  return n;
}

void Method::zero_grad() {
  for (Parameter* p : parameters()) p->zero_grad();
}

}  // namespace lk
