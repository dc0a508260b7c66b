// The ops that both kernel benches time, each once: a case makes its operands on a device, and its
// call runs on that device or on a backend that adds up the work.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/work.h"

namespace lk::bench {

using KernelCall = std::function<void(Backend& on)>;
struct KernelCase {
  std::string name;
  std::function<KernelCall(Backend& device)> make;
};

// T tokens of width C, feed-forward width F, heads of D, `loss_rows` supervised tokens of a
// vocabulary of V, and `factors` trained matrices of `factor_numel` numbers each.
struct KernelSizes {
  DType dtype = DType::BF16;
  std::int64_t T = 0, C = 0, F = 0, D = 0, V = 0, loss_rows = 0;
  std::int64_t factors = 0, factor_numel = 0;
};
std::vector<KernelCase> kernel_cases(const KernelSizes& sizes);

// The least that a call has to do: the sum over its ops and its copies from and to the host.
Work work_of(const KernelCall& call);

}  // namespace lk::bench
