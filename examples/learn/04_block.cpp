// The attention half of a decoder block on random numbers: what attention looks at, what the tape
// keeps, and whether all of it is differentiated rightly.
//   n = rmsnorm(x);  h = x + o(attention(rope(q(n)), rope(k(n)), v(n)))
#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "cpu/cpu_backend.h"
#include "learn.h"
#include "nn/config.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

constexpr std::int64_t T = 6, C = 8, H = 2, D = 4;  // tokens, width, heads, size of a head

Parameter trainable(Backend& b, const char* name, Shape shape, unsigned seed) {
  const std::vector<double> values = random_values(shape.numel(), seed, 0.5);
  return {name, tensor_from(b, DType::F64, shape, values, Tag::Params), DType::F64};
}

// The weights of one head: with the unit vectors as values, attention's output is its weights.
void show_weights(Backend& backend, const Segments& two_texts) {
  std::vector<double> unit(T * T);
  for (std::size_t t = 0; t < T; ++t) unit[t * T + t] = 1;
  const AttentionShape one_head{1, 1, T, 1 / std::sqrt(static_cast<float>(T)), 0};
  Tape tape(backend, Tape::Mode::NoGrad);
  auto random = [&](unsigned seed) { return random_tensor(backend, DType::F64, {T, T}, seed); };
  const Var q(random(1)), k(random(2)), v(tensor_from(backend, DType::F64, {T, T}, unit));
  const Tensor weights = attention(tape, q, k, v, one_head, two_texts).value();
  learn::print("weights", weights);  // each row is a token, each column one that it looks at
  bool sums = true, causal = true;
  for (std::size_t t = 0; t < T; ++t) {
    double sum = 0;
    for (std::size_t s = 0; s < T; ++s) {
      const double p = weights.data<double>()[t * T + s];
      sum += p;
      if (s > t || (t >= 4 && s < 4)) causal &= p == 0;
    }
    sums &= std::abs(sum - 1) < 1e-12;
  }
  learn::claim(sums, "each row sums to 1");
  learn::claim(causal, "nobody looks ahead, or from the second text into the first");
}

}  // namespace

int main() {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *cpu;
  const Segments two_texts = make_segments(backend, {0, 4, T});  // of 4 and 2 tokens, end to end
  show_weights(backend, two_texts);

  const Weight gain("gain", random_tensor(backend, DType::F64, {C}, 3));
  Parameter q = trainable(backend, "q", {H * D, C}, 4), k = trainable(backend, "k", {D, C}, 5),
            v = trainable(backend, "v", {D, C}, 6), o = trainable(backend, "o", {C, H * D}, 7);
  const Tensor angles = rope_table(backend, {1.0, 0.1}, T, DType::F64);
  const Tensor positions = to_device(backend, Tag::Workspace, std::array{0, 1, 2, 3, 0, 1});
  const AttentionShape shape{H, 1, D, 0.5f,
                             0};  // two query heads share one head of keys and values
  auto half_block = [&](Tape& tape, const std::vector<Var>& in) {
    Var n = rmsnorm(tape, in[0], gain, 1e-5);
    Var qs = rope(tape, linear(tape, n, q), angles, positions, D);
    Var ks = rope(tape, linear(tape, n, k), angles, positions, D);
    Var seen = attention(tape, qs, ks, linear(tape, n, v), shape, two_texts);
    return add(tape, in[0], linear(tape, seen, o));
  };
  const Tensor x = random_tensor(backend, DType::F64, {T, C}, 8);
  Tape tape(backend);
  half_block(tape, {tape.leaf(x)});
  learn::print_tape(tape.node_names());
  const GradcheckResult r = gradcheck(backend, half_block, {x}, {&q, &k, &v, &o});
  std::printf("%d slopes compared, the worst at %.4f of its bound\n", static_cast<int>(r.n_checked),
              r.worst_ratio);
  learn::claim(r.ok, r.ok ? "the block's backward is its derivative" : r.message);
  return learn::broken_claims > 0;
}
