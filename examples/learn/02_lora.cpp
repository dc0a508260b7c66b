// What a rank can't reach. W is frozen, the target is W + D, D's singular values are 8, 4, 2, ...
// LoRA of rank R trains B A towards D. The nearest matrix of rank R keeps the R largest of them
// (Eckart & Young, 1936), so no training ends below the squares of the others.
#include <cmath>

#include "cpu/cpu_backend.h"
#include "learn.h"
#include "lora/lora_linear.h"
#include "nn/adamw.h"
#include "nn/schedule.h"
#include "tensor/sample.h"

using namespace lk;

namespace {
constexpr int N = 24, K = 32, kPlanted = 8, kSteps = 1000;

double singular_value(int i) { return 8 / std::pow(2.0, i); }

Parameter zero(Backend& backend, const char* name, Shape shape) {
  Tensor t = backend.empty(Tag::Params, DType::F64, shape);
  backend.fill(t, 0);
  return {name, t, DType::F64};
}

// |B A - D|^2 after training. The inputs x are the K unit vectors, so the layer's output is
// (W + B A)ᵀ and `target` is (W + D)ᵀ.
double train(const Tensor& x, const Weight& w, const std::vector<double>& target, int rank) {
  Backend& backend = x.backend();
  Parameter a = zero(backend, "A", {rank, K}), b = zero(backend, "B", {N, rank});
  // A is random and B is zero: before the first step the layer is W.
  backend.uniform(a.value(), 1 / std::sqrt(static_cast<float>(K)), {1, 0, 0});
  AdamW optimizer({&a, &b}, {});
  const Schedule schedule{ScheduleKind::Cosine, 0.05, 0, kSteps};
  double loss = 0;
  for (int step = 0; step < kSteps; ++step) {
    a.zero_grad(), b.zero_grad();
    Tape tape(backend);
    Var y = lora_linear(tape, Var(x), w, nullptr, a, b, 1.0, 0, {});
    Var error = host_loss(tape, y, [&](std::span<const double> value, std::span<double> dy) {
      loss = 0;
      for (std::size_t i = 0; i < value.size(); ++i) {
        dy[i] = 2 * (value[i] - target[i]);
        loss += dy[i] * dy[i] / 4;
      }
      return loss;
    });
    tape.backward(error);
    optimizer.step(static_cast<float>(lr_at(schedule, step)), 0, optimizer.grad_norm_sq());
  }
  return loss;
}

}  // namespace

int main() {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  const std::vector<double> values = random_values(N * K, 1);
  const Weight w("w", tensor_from(*cpu, DType::F64, {N, K}, values));
  std::vector<double> unit(K * K), target(K * N);
  for (std::size_t k = 0; k < K; ++k) {
    unit[k * K + k] = 1;
    for (std::size_t n = 0; n < N; ++n) target[k * N + n] = values[n * K + k];
    if (k < kPlanted) target[k * N + k] += singular_value(static_cast<int>(k));  // D is diagonal
  }
  const Tensor x = tensor_from(*cpu, DType::F64, {K, K}, unit);
  std::printf("W (%d x %d) has %d numbers\n\nrank  trained     reached  out of reach\n", N, K,
              N * K);
  bool near = true;
  for (int rank : {1, 2, 4, 8}) {
    double bound = 0;
    for (int i = rank; i < kPlanted; ++i) bound += std::pow(singular_value(i), 2);
    const double reached = train(x, w, target, rank);
    std::printf("%4d  %7d  %10.6f  %12.6f\n", rank, rank * (N + K), reached, bound);
    near &= reached >= bound - 1e-9 && reached <= 1.001 * bound + 1e-3;
  }
  learn::claim(near, "each rank comes within a thousandth of its bound, and none below it");
  return learn::broken_claims > 0;
}
