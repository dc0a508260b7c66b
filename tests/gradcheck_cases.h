// Gradient checks by op family: a family's test file adds its cases; test_gradcheck.cpp runs them
// all and fails if a node type has none.
#pragma once

#include <list>

#include "autograd/gradcheck.h"
#include "autograd/trained.h"
#include "cpu_ops.h"

namespace lk::test {

using Vars = std::vector<Var>;

// `f` is a function of all `inputs` and `parameters`, in F64.
struct GradcheckCase {
  std::string what;
  std::function<Var(Tape&, const Vars&)> f;
  std::vector<Tensor> inputs;
  std::vector<Parameter*> parameters = {};
};
using GradcheckCases = std::vector<GradcheckCase>;

// At namespace scope: const GradcheckFamily gradients([](GradcheckCases& out) { ... });
struct GradcheckFamily {
  using Add = void (*)(GradcheckCases& out);
  explicit GradcheckFamily(Add add) { all().push_back(add); }
  static std::vector<Add>& all() {
    static std::vector<Add> families;
    return families;
  }
};

// Ingredients of cases: numbers, indices, frozen and trainable matrices.
inline Tensor rnd(Shape shape, unsigned seed, double scale = 1.0) {
  return random_tensor(reference(), DType::F64, shape, seed, scale);
}
inline Tensor ints(const std::vector<std::int32_t>& v) {
  return to_device(reference(), Tag::Workspace, v);
}
inline Weight frozen(Shape shape, unsigned seed) { return Weight("w", rnd(shape, seed)); }
inline Parameter& trainable(Shape shape, unsigned seed) {
  static std::list<Parameter> all;  // nodes refer to a Parameter: its address must stay
  return all.emplace_back("p" + std::to_string(all.size()), rnd(shape, seed), DType::F64);
}
// cos and sin of any angles: rope's derivative does not depend on which.
inline Tensor rope_angles(std::int64_t positions, std::int64_t head_dim) {
  std::vector<double> v;
  for (std::int64_t p = 0; p < positions; ++p) {
    const std::int64_t half = head_dim / 2;
    auto angle = [&](std::int64_t i) { return 0.7 * static_cast<double>(p * (i + 1)) + 0.1; };
    for (std::int64_t i = 0; i < half; ++i) v.push_back(std::cos(angle(i)));
    for (std::int64_t i = 0; i < half; ++i) v.push_back(std::sin(angle(i)));
  }
  return tensor_from(reference(), DType::F64, {positions, head_dim}, v);
}

}  // namespace lk::test
